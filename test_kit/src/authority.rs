//! A certificate authority of the tests' own.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use swiftchat::config::TlsConfig;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

/// An authority that whoever is given its certificate trusts.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    /// An authority with a key of its own.
    ///
    /// # Panics
    ///
    /// When its files cannot be written.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A name of its own: OpenSSL takes a certificate whose issuer has the same name for one that signed itself.
        params.distinguished_name.push(DnType::CommonName, "The authority of the tests");
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate of one's own");
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("authority.pem"), issuer.pem()).expect("the folder can be written");
        Self { issuer, folder }
    }

    /// The file with its certificate.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// A certificate for a name or address, and its key.
    ///
    /// # Panics
    ///
    /// When its files cannot be written.
    #[must_use]
    pub fn certify(&self, names: &[&str]) -> TlsConfig {
        let params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let key = KeyPair::generate().expect("a key");
        let certificate = params.expect("names").signed_by(&key, &self.issuer).expect("a certificate");
        let path = |end: &str| self.folder.path().join(format!("{}.{end}", names.join("+").replace(['*', ':'], "_")));
        let files = TlsConfig { certificate: path("pem"), key: path("key") };
        std::fs::write(&files.certificate, certificate.pem()).expect("the folder can be written");
        std::fs::write(&files.key, key.serialize_pem()).expect("the folder can be written");
        files
    }

    /// What takes TLS connections with such a certificate.
    pub(crate) fn acceptor(&self, names: &[&str]) -> TlsAcceptor {
        let files = self.certify(names);
        let chain = CertificateDer::pem_file_iter(&files.certificate).expect("the certificate just written");
        let chain: Vec<_> = chain.map(|certificate| certificate.expect("a certificate")).collect();
        let key = PrivateKeyDer::from_pem_file(&files.key).expect("the key just written");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the usual protocols")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate with its key");
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// An address of loopback that nobody else uses, so that each server can have the ports that servers have.
#[must_use]
pub fn loopback_address() -> IpAddr {
    let bytes: [u8; 3] = model::Random::system().bytes();
    // 127.0.*.* is everybody's, and the last byte is that of a host.
    IpAddr::from([127, bytes[0] % 254 + 1, bytes[1], bytes[2] % 254 + 1])
}
