//! The way from one server to another, which a test can cut.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::authority::loopback_address;

/// Carries connections to a server until it is cut, and again once it is healed.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    is_cut: bool,
    delay: Duration,
}

impl Link {
    /// A way to `target`, from an address of its own with the same port.
    ///
    /// # Panics
    ///
    /// When loopback gives no address.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = listen(target.port()).await;
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = watch::Sender::new(State::default());
        let task = tokio::spawn(carry(listener, target, Arc::new(state.clone())));
        Self { address, state, task }
    }

    /// Where it begins.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// Ends all connections, and refuses new ones.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.is_cut = true);
    }

    /// Carries connections again.
    pub fn heal(&self) {
        self.state.send_modify(|state| state.is_cut = false);
    }

    /// Lets each new connection wait.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether this user may open a port, such as 443; says so when not.
#[must_use]
pub async fn may_listen(port: u16) -> bool {
    let is_free = TcpListener::bind((loopback_address(), port)).await.is_ok();
    if !is_free {
        eprintln!("SKIPPED: this user may not open port {port}");
    }
    is_free
}

/// Listens on a port of an address of its own.
pub(crate) async fn listen(port: u16) -> TcpListener {
    for _ in 0..100 {
        if let Ok(listener) = TcpListener::bind((loopback_address(), port)).await {
            return listener;
        }
    }
    panic!("port {port} is free on no address of loopback; may this user open it?")
}

async fn carry(listener: TcpListener, target: SocketAddr, state: Arc<watch::Sender<State>>) {
    while let Ok((mut from, _)) = listener.accept().await {
        let mut state = state.subscribe();
        tokio::spawn(async move {
            let State { is_cut, delay } = *state.borrow();
            if is_cut {
                return;
            }
            tokio::time::sleep(delay).await;
            let Ok(mut to) = TcpStream::connect(target).await else { return };
            // What is carried is not to wait for more.
            let _ = (from.set_nodelay(true), to.set_nodelay(true));
            tokio::select! {
                _ = copy_bidirectional(&mut from, &mut to) => {}
                _ = state.wait_for(|state| state.is_cut) => {}
            }
        });
    }
}
