//! The servers that a case is played on.

use std::sync::{Arc, PoisonError};

use test_kit::{Http, ServerOptions, Synapse, TestDatabase, TestFederation, TestServer, TestUser, register};
use tokio::sync::Mutex;

use crate::gate::Upstream;

/// Which servers the two people of a case are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topology {
    One,
    Two,
    ToSynapse,
    FromSynapse,
}

impl Topology {
    pub(crate) const ALL: [Self; 4] = [Self::One, Self::Two, Self::ToSynapse, Self::FromSynapse];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::One => "one SwiftChat",
            Self::Two => "two SwiftChats",
            Self::ToSynapse => "SwiftChat and Synapse",
            Self::FromSynapse => "Synapse and SwiftChat",
        }
    }
}

/// Running servers.
pub(crate) struct World {
    servers: Mutex<Servers>,
    /// Where the server of the first person is, and that of the second.
    upstreams: [Upstream; 2],
}

enum Servers {
    One(Box<TestServer>),
    Two(TestFederation),
    WithSynapse { federation: TestFederation, ours: String, synapse: Box<Synapse>, first_is_ours: bool },
}

impl World {
    /// Starts the servers of a topology.
    pub(crate) async fn of(topology: Topology) -> Self {
        let servers = match topology {
            Topology::One => Servers::One(Box::new(TestServer::with(options()).await)),
            Topology::Two => {
                let mut federation = TestFederation::empty();
                for name in ["hs1", "hs2"] {
                    federation.add(name, TestDatabase::sqlite(), options()).await;
                }
                Servers::Two(federation)
            }
            Topology::ToSynapse | Topology::FromSynapse => {
                let mut federation = TestFederation::empty();
                let synapse = Box::new(Synapse::start(federation.authority()).await);
                let ours = federation.add_by_address(TestDatabase::sqlite(), options()).await;
                Servers::WithSynapse { federation, ours, synapse, first_is_ours: topology == Topology::ToSynapse }
            }
        };
        let upstreams = servers.bases().map(|base| Arc::new(std::sync::Mutex::new(base)));
        Self { servers: Mutex::new(servers), upstreams }
    }

    /// Where the server of a person is: 0 for the first, 1 for the second.
    pub(crate) fn upstream(&self, person: usize) -> Upstream {
        self.upstreams[person].clone()
    }

    /// What talks to the server of a person.
    pub(crate) fn http(&self, person: usize) -> Http {
        Http::new(&self.upstreams[person].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Registers somebody at the server of a person.
    pub(crate) async fn user(&self, person: usize, name: &str) -> TestUser {
        register(&self.http(person), name).await
    }

    /// Ends all servers in order and starts them again.
    pub(crate) async fn restart(&self) {
        let mut servers = self.servers.lock().await;
        match &mut *servers {
            Servers::One(server) => server.restart().await,
            Servers::Two(federation) => {
                for name in ["hs1", "hs2"] {
                    federation.server_mut(name).stop().await;
                }
                for name in ["hs1", "hs2"] {
                    federation.server_mut(name).go_on().await;
                }
            }
            Servers::WithSynapse { federation, ours, synapse, .. } => {
                synapse.stop();
                federation.server_mut(ours).restart().await;
                synapse.go_on().await;
            }
        }
        for (upstream, base) in self.upstreams.iter().zip(servers.bases()) {
            *upstream.lock().unwrap_or_else(PoisonError::into_inner) = base;
        }
    }
}

impl Servers {
    fn bases(&self) -> [String; 2] {
        match self {
            Self::One(server) => [server.http(), server.http()],
            Self::Two(federation) => [federation.server("hs1").http(), federation.server("hs2").http()],
            Self::WithSynapse { federation, ours, synapse, first_is_ours } => {
                let ours = federation.server(ours).http();
                if *first_is_ours { [ours, synapse.http()] } else { [synapse.http(), ours] }
            }
        }
        .map(|http| http.base().to_owned())
    }
}

/// Who logs in is not told where else the server is: they come through their gates.
fn options() -> ServerOptions {
    let mut options = ServerOptions::default();
    options.config.client_api.public_url = None;
    options
}
