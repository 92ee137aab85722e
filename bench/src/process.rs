//! Processor time and memory of processes, from `/proc`.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Length of a clock tick in `/proc/<pid>/stat`: Linux shows 100 a second to every program.
const TICK: Duration = Duration::from_millis(10);

/// What `/proc/<pid>/stat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// User and system time of the process and of its children that have ended.
    cpu: Duration,
}

/// Reads a line of `/proc/<pid>/stat`. The name in parentheses may hold spaces and parentheses itself.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Counted from the state, which is field 3 in proc(5): utime, stime, cutime and cstime are fields 14 to 17.
    let mut ticks: u32 = 0;
    for field in fields.get(11..15)? {
        ticks = ticks.checked_add(field.parse().ok()?)?;
    }
    Some(Stat { parent: fields.get(1)?.parse().ok()?, cpu: TICK * ticks })
}

/// The resident memory in `/proc/<pid>/status`, in bytes.
fn parse_resident_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Resident memory of processes, in bytes, without their descendants. `None` without processes.
///
/// # Errors
///
/// When a process is gone.
pub(crate) fn resident_bytes(pids: &[u32]) -> Result<Option<u64>> {
    let mut sum = None;
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("no process {pid}"))?;
        let bytes = parse_resident_bytes(&text).with_context(|| format!("process {pid} shows no memory"))?;
        sum = Some(sum.unwrap_or(0) + bytes);
    }
    Ok(sum)
}

/// Processor time of processes and all their descendants. `None` without processes.
fn cpu_of_trees(roots: &[u32]) -> Result<Option<Duration>> {
    if roots.is_empty() {
        return Ok(None);
    }
    let mut all = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end between the listing and the reading.
        if let Some(stat) = fs::read_to_string(entry.path().join("stat")).ok().and_then(|text| parse_stat(&text)) {
            all.insert(pid, stat);
        }
    }
    for root in roots {
        all.get(root).with_context(|| format!("no process {root}"))?;
    }
    Ok(Some(sum_of_trees(&all, roots)))
}

fn sum_of_trees(all: &HashMap<u32, Stat>, roots: &[u32]) -> Duration {
    let in_tree = |pid: u32| {
        let mut at = pid;
        // No tree is deeper than the table is long.
        for _ in 0..all.len() {
            if roots.contains(&at) {
                return true;
            }
            match all.get(&at) {
                Some(stat) => at = stat.parent,
                None => return false,
            }
        }
        false
    };
    all.iter().filter(|(pid, _)| in_tree(**pid)).map(|(_, stat)| stat.cpu).sum()
}

/// The processes whose cost is measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Processes {
    pub(crate) server: Vec<u32>,
    pub(crate) database: Vec<u32>,
}

/// Measures wall time and processor time between two moments.
#[derive(Debug)]
pub(crate) struct Meter {
    processes: Processes,
    started: Instant,
    server: Option<Duration>,
    database: Option<Duration>,
    client: Duration,
}

/// What a [`Meter`] measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    pub(crate) server: Option<Duration>,
    pub(crate) database: Option<Duration>,
    pub(crate) client: Duration,
}

impl Meter {
    pub(crate) fn start(processes: &Processes) -> Result<Self> {
        Ok(Self {
            server: cpu_of_trees(&processes.server)?,
            database: cpu_of_trees(&processes.database)?,
            client: own_cpu()?,
            processes: processes.clone(),
            started: Instant::now(),
        })
    }

    pub(crate) fn stop(self) -> Result<Cost> {
        let wall = self.started.elapsed();
        let since = |now: Option<Duration>, then: Option<Duration>| Some(now?.saturating_sub(then?));
        Ok(Cost {
            wall,
            server: since(cpu_of_trees(&self.processes.server)?, self.server),
            database: since(cpu_of_trees(&self.processes.database)?, self.database),
            client: own_cpu()?.saturating_sub(self.client),
        })
    }
}

fn own_cpu() -> Result<Duration> {
    let stat = parse_stat(&fs::read_to_string("/proc/self/stat")?).context("/proc/self/stat is not understood")?;
    Ok(stat.cpu)
}

/// Bytes of disk that a folder takes.
pub(crate) fn folder_bytes(folder: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += folder_bytes(&entry.path())?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "4242 (a (strange) name) S 17 4242 4242 0 -1 4194560 1000 0 0 0 150 50 7 3 20 0 9 0 12345 \
                        1000000 2500 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0";

    #[test]
    fn processor_time_is_user_and_system_with_ended_children() {
        assert_eq!(parse_stat(LINE), Some(Stat { parent: 17, cpu: Duration::from_millis(2100) }));
    }

    #[test]
    fn a_broken_stat_line_is_refused() {
        assert_eq!(parse_stat(""), None);
        assert_eq!(parse_stat("1 (x) S 1 2 3"), None);
        assert_eq!(parse_stat(&LINE.replace(" 150 ", " many ")), None);
    }

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(parse_resident_bytes("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t1\n"), Some(2 << 20));
        assert_eq!(parse_resident_bytes("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn descendants_count_and_strangers_do_not() {
        let stat = |parent, seconds| Stat { parent, cpu: Duration::from_secs(seconds) };
        let all = HashMap::from([(1, stat(0, 1)), (2, stat(1, 2)), (3, stat(2, 4)), (4, stat(1, 8)), (5, stat(5, 16))]);
        assert_eq!(sum_of_trees(&all, &[2]), Duration::from_secs(6));
        assert_eq!(sum_of_trees(&all, &[1, 2]), Duration::from_secs(15));
    }

    #[test]
    fn this_process_can_be_measured() {
        let pid = std::process::id();
        assert!(resident_bytes(&[pid]).unwrap().unwrap() > 100_000);
        let cost = Meter::start(&Processes { server: vec![pid], database: vec![] }).unwrap().stop().unwrap();
        assert!(cost.server.is_some() && cost.database.is_none());
    }
}
