//! What was measured, as text for people or as one JSON object a line.

use std::time::Duration;

use serde_json::{Map, Number, Value};

use crate::{
    percentiles::{Samples, Summary},
    process::Cost,
};

/// The result of one measurement. Names say their unit last: `latency_p50_ms`.
#[derive(Debug)]
pub(crate) struct Report {
    what: &'static str,
    figures: Vec<(String, Value)>,
}

impl Report {
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, figures: Vec::new() }
    }

    pub(crate) fn count(&mut self, name: &str, value: u64) -> &mut Self {
        self.add(name, Value::from(value))
    }

    pub(crate) fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.add(name, Value::from(value))
    }

    pub(crate) fn number(&mut self, name: &str, value: f64) -> &mut Self {
        // Three digits after the point are more than any of these measurements is worth.
        let rounded = (value * 1000.0).round() / 1000.0;
        self.add(name, Number::from_f64(rounded).map_or(Value::Null, Value::Number))
    }

    pub(crate) fn milliseconds(&mut self, name: &str, value: Duration) -> &mut Self {
        self.number(&format!("{name}_ms"), value.as_secs_f64() * 1e3)
    }

    /// Percentiles of a latency; nothing without samples.
    pub(crate) fn latencies(&mut self, name: &str, samples: Samples) -> &mut Self {
        if let Some(Summary { mean, p50, p90, p99, p999, max }) = samples.summary() {
            for (part, value) in
                [("mean", mean), ("p50", p50), ("p90", p90), ("p99", p99), ("p999", p999), ("max", max)]
            {
                self.milliseconds(&format!("{name}_{part}"), value);
            }
        }
        self
    }

    /// Processor time in all, in cores, and for each of `operations` operations called `operation`.
    pub(crate) fn cost(&mut self, cost: Cost, operation: &str, operations: u64) -> &mut Self {
        self.number("wall_s", cost.wall.as_secs_f64());
        let parts = [("server", cost.server), ("database", cost.database), ("client", Some(cost.client))];
        for (who, cpu) in parts {
            let Some(cpu) = cpu else { continue };
            self.number(&format!("{who}_cpu_s"), cpu.as_secs_f64());
            self.number(&format!("{who}_cpu_cores"), cpu.as_secs_f64() / cost.wall.as_secs_f64().max(1e-9));
            if operations > 0 {
                self.number(&format!("{who}_cpu_per_{operation}_us"), cpu.as_secs_f64() * 1e6 / operations as f64);
            }
        }
        self
    }

    /// Memory in MiB; nothing when it was not measured.
    pub(crate) fn memory(&mut self, name: &str, bytes: Option<u64>) -> &mut Self {
        if let Some(bytes) = bytes {
            self.number(&format!("{name}_mib"), bytes as f64 / f64::from(1 << 20));
        }
        self
    }

    fn add(&mut self, name: &str, value: Value) -> &mut Self {
        self.figures.push((name.to_owned(), value));
        self
    }

    pub(crate) fn print(&self, json: bool) {
        println!("{}", if json { self.to_json() } else { self.to_text() });
    }

    fn to_json(&self) -> String {
        let mut object = Map::from_iter([("benchmark".to_owned(), Value::from(self.what))]);
        object.extend(self.figures.iter().cloned());
        Value::Object(object).to_string()
    }

    fn to_text(&self) -> String {
        let width = self.figures.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut text = self.what.to_owned();
        for (name, value) in &self.figures {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.push_str(&format!("\n  {name:width$}  {value}"));
        }
        text
    }
}

/// Tells on standard error what is going on.
pub(crate) fn progress(text: &str) {
    eprintln!("bench: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new("send");
        let cost = Cost {
            wall: Duration::from_secs(2),
            server: Some(Duration::from_secs(1)),
            database: None,
            client: Duration::from_millis(500),
        };
        report.count("connections", 64).milliseconds("latency_p50", Duration::from_micros(1234));
        report.cost(cost, "send", 1000).latencies("latency", Samples::default());
        report
    }

    #[test]
    fn json_is_one_object_in_one_line() {
        let text = report().to_json();
        assert!(!text.contains('\n'));
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["benchmark"], "send");
        assert_eq!(object["connections"], 64);
        assert_eq!(object["latency_p50_ms"], 1.234);
        assert_eq!(object["server_cpu_per_send_us"], 1000.0);
        assert_eq!(object["server_cpu_cores"], 0.5);
        assert_eq!(object["client_cpu_per_send_us"], 500.0);
        assert_eq!(object.get("database_cpu_s"), None);
    }

    #[test]
    fn text_has_a_line_for_every_figure() {
        let text = report().to_text();
        assert!(text.starts_with("send\n  connections "));
        assert_eq!(text.lines().count(), 1 + report().figures.len());
    }
}
