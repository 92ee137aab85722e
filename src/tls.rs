//! Certificates of listeners.

use std::{path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    client::verify_server_name,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio_rustls::TlsAcceptor;

use crate::{Error, config::TlsConfig};

/// The certificates of authorities in a PEM file.
///
/// # Errors
///
/// [`Error::Authorities`].
pub(crate) fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| Error::Authorities { path: path.to_owned(), reason: error.to_string() })
}

/// Reads certificates and offers HTTP/2 and HTTP/1.1 with them; nothing without any.
pub(crate) fn acceptor(configs: &[TlsConfig]) -> Result<Option<TlsAcceptor>, Error> {
    let Some(first) = configs.first() else { return Ok(None) };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certificates = configs.iter().map(|config| certified(config, &provider)).collect::<Result<_, _>>()?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(first, error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ByName(certificates)));
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}

/// A certificate with its key.
fn certified(config: &TlsConfig, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
    let chain = CertificateDer::pem_file_iter(&config.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(config, format!("the certificate cannot be read: {error}")))?;
    let key = PrivateKeyDer::from_pem_file(&config.key)
        .map_err(|error| failed(config, format!("the key cannot be read: {error}")))?;
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| failed(config, error.to_string()))?;
    certified
        .end_entity_cert()
        .and_then(|certificate| ParsedCertificate::try_from(certificate).map(drop))
        .map_err(|error| failed(config, error.to_string()))?;
    Ok(Arc::new(certified))
}

fn failed(config: &TlsConfig, reason: String) -> Error {
    Error::Certificate { certificate: config.certificate.clone(), key: config.key.clone(), reason }
}

/// Chooses the first certificate that has the name that a client asks for, and the first of all when none has, or it asks for none: who
/// connects to an address sends no name.
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = client.server_name().and_then(|name| ServerName::try_from(name).ok());
        let has = |certified: &&Arc<CertifiedKey>| {
            let certificate = certified.end_entity_cert().and_then(ParsedCertificate::try_from);
            name.as_ref().is_some_and(|name| certificate.is_ok_and(|it| verify_server_name(&it, name).is_ok()))
        };
        self.0.iter().find(has).or(self.0.first()).cloned()
    }
}
