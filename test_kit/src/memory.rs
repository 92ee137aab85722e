//! How much memory something takes, by what the system says of this process.

use std::fs;

/// Does the work, and gives by how many bytes the memory of this process was at most larger meanwhile than before.
///
/// What the test itself holds counts too: it should be little.
///
/// # Panics
///
/// When the system does not say (Linux does).
pub async fn growth_during<T>(work: impl Future<Output = T>) -> (T, u64) {
    // The peak begins anew: proc(5), "/proc/pid/clear_refs".
    fs::write("/proc/self/clear_refs", "5").expect("the peak can be reset");
    let before = field("VmRSS:");
    let result = work.await;
    (result, field("VmHWM:").saturating_sub(before))
}

fn field(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the status of this process");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line of the status");
    let kib = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number");
    kib * 1_024
}
