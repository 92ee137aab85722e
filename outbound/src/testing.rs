//! A name server for tests: on loopback, with the records that a test gives it.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, SRV},
    },
};
use tokio::{net::UdpSocket, task::JoinHandle};

/// A name server that answers until it is dropped.
#[derive(Debug)]
pub struct TestDns {
    address: SocketAddr,
    records: Records,
    task: JoinHandle<()>,
}

type Records = Arc<Mutex<HashMap<(Name, RecordType), Vec<RData>>>>;

impl TestDns {
    /// A name server without records.
    ///
    /// # Panics
    ///
    /// When loopback gives no port.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port on loopback");
        let address = socket.local_addr().expect("a bound socket has an address");
        let records = Records::default();
        let task = tokio::spawn(serve(socket, records.clone()));
        Self { address, records, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The name has this address; with several calls several.
    pub fn add_address(&self, name: &str, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.add(name, RecordType::A, RData::A(A(address))),
            IpAddr::V6(address) => self.add(name, RecordType::AAAA, RData::AAAA(AAAA(address))),
        }
    }

    /// The name has exactly this address from now on.
    pub fn set_address(&self, name: &str, address: IpAddr) {
        for record_type in [RecordType::A, RecordType::AAAA] {
            self.lock().remove(&(absolute(name), record_type));
        }
        self.add_address(name, address);
    }

    /// The name stands for another one.
    pub fn add_alias(&self, name: &str, target: &str) {
        self.add(name, RecordType::CNAME, RData::CNAME(CNAME(absolute(target))));
    }

    /// The service, `_matrix-fed._tcp.example.org`, is at `target`; "." says that it is nowhere.
    pub fn add_service(&self, name: &str, (priority, weight, port): (u16, u16, u16), target: &str) {
        self.add(name, RecordType::SRV, RData::SRV(SRV::new(priority, weight, port, absolute(target))));
    }

    fn add(&self, name: &str, record_type: RecordType, data: RData) {
        self.lock().entry((absolute(name), record_type)).or_default().push(data);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Name, RecordType), Vec<RData>>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TestDns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn absolute(name: &str) -> Name {
    let name = Name::from_ascii(name).expect("a test's name is a name");
    let mut name = name.to_lowercase();
    name.set_fqdn(true);
    name
}

async fn serve(socket: UdpSocket, records: Records) {
    let mut buffer = [0; 4_096];
    while let Ok((length, asker)) = socket.recv_from(&mut buffer).await {
        let Ok(request) = Message::from_vec(&buffer[..length]) else { continue };
        let Ok(answer) = answer(&request, &records).to_vec() else { continue };
        let _ = socket.send_to(&answer, asker).await;
    }
}

/// The records of the question, with those that its aliases lead to. They may be kept for no time at all.
fn answer(request: &Message, records: &Records) -> Message {
    let records = records.lock().unwrap_or_else(PoisonError::into_inner);
    let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
    answer.metadata.recursion_desired = request.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    let Some(query) = request.queries.first() else { return answer };
    answer.add_query(query.clone());
    let mut name = query.name().to_lowercase();
    let mut is_known = records.keys().any(|(known, _)| *known == name);
    while let Some([target, ..]) = records.get(&(name.clone(), RecordType::CNAME)).map(Vec::as_slice) {
        answer.add_answer(Record::from_rdata(name.clone(), 0, target.clone()));
        let RData::CNAME(CNAME(target)) = target else { break };
        (name, is_known) = (target.to_lowercase(), true);
    }
    for data in records.get(&(name.clone(), query.query_type())).into_iter().flatten() {
        answer.add_answer(Record::from_rdata(name.clone(), 0, data.clone()));
    }
    answer.metadata.response_code = if is_known { ResponseCode::NoError } else { ResponseCode::NXDomain };
    answer
}
