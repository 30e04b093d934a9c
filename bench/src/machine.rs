//! The host that measures: what a figure depends on, and what spoils it.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// As `ip link` has it.
    pub name: String,
    /// Largest packet, in bytes.
    pub mtu: u64,
    /// In Mbit/s, where the device says.
    pub speed_mbit: Option<u64>,
    /// The kernel's driver.
    pub driver: Option<String>,
    /// Firmware of the device.
    pub firmware: Option<String>,
    /// How many interrupts it has.
    pub irqs: usize,
    /// Cores that they may go to, as the kernel lists them (`0-3,8`), each list once.
    #[serde(default)]
    pub irq_cores: Vec<String>,
}

/// A host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Logical cores.
    pub cores: usize,
    /// The kernel's version.
    pub kernel: String,
    /// Frequency governors of the cores, each named once.
    pub governors: Vec<String>,
    /// Whether the processor may raise its frequency.
    pub turbo: Option<bool>,
    /// Whether this is a virtual machine.
    pub is_virtual: bool,
    /// Load average over the last minute, in hundredths.
    pub load_percent: u64,
    /// Hyper-threads per core.
    pub threads_per_core: usize,
    /// Bytes of memory that a process may lock; None: unlimited.
    pub memlock_bytes: Option<u64>,
    /// Whether a service moves interrupts between cores.
    pub irqbalance: bool,
    /// Interfaces that are up, the loopback included.
    pub interfaces: Vec<Interface>,
    /// RDMA devices.
    pub rdma: Vec<String>,
}

impl Machine {
    /// This host, now.
    #[must_use]
    pub fn here() -> Self {
        let info = text("/proc/cpuinfo");
        let field = |name: &str| info.lines().find_map(|line| value_of(line, name));
        let siblings = field("siblings").and_then(|v| v.parse::<usize>().ok());
        let cores = field("cpu cores").and_then(|v| v.parse::<usize>().ok());
        Self {
            cpu: field("model name").unwrap_or_default().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: text("/proc/sys/kernel/osrelease"),
            governors: governors(),
            turbo: turbo(),
            is_virtual: info.lines().any(|line| line.contains(" hypervisor")),
            load_percent: load_percent(&text("/proc/loadavg")),
            threads_per_core: siblings.zip(cores).map_or(1, |(s, c)| s / c.max(1)),
            memlock_bytes: memlock(&text("/proc/self/limits")),
            irqbalance: is_running("irqbalance"),
            interfaces: interfaces(),
            rdma: names(Path::new("/sys/class/infiniband")),
        }
    }

    /// The same host at this moment, as far as that changes.
    #[must_use]
    pub fn with_load_now(self) -> Self {
        Self {
            load_percent: load_percent(&text("/proc/loadavg")),
            ..self
        }
    }

    /// What spoils a measurement here, each with what to do about it.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut warn = |is_so: bool, text: String| {
            if is_so {
                out.push(text);
            }
        };
        let (load, cores) = (self.load_percent, self.cores);
        warn(
            load > 30,
            format!(
                "load average {:.2}: other work takes cores; believe ratios only",
                load as f64 / 100.0
            ),
        );
        warn(
            cores < 4,
            format!("{cores} cores: client, server and everything else share them"),
        );
        warn(
            self.is_virtual,
            "a virtual machine: its host may take the cores away at any time".to_owned(),
        );
        for governor in self.governors.iter().filter(|name| *name != "performance") {
            warn(
                true,
                format!(
                    "governor {governor}: set 'performance' (cpupower frequency-set -g performance)"
                ),
            );
        }
        warn(
            self.turbo == Some(true),
            "turbo is on: frequencies depend on the load of other cores".to_owned(),
        );
        warn(
            self.threads_per_core > 1,
            "hyper-threads: pin client and server to cores, not to threads of one".to_owned(),
        );
        warn(
            self.irqbalance,
            "irqbalance runs: interrupts move between cores (systemctl stop irqbalance)".to_owned(),
        );
        if !self.rdma.is_empty() {
            warn(
                self.memlock_bytes.is_some_and(|b| b < 64 << 20),
                "memlock too low for RDMA: ulimit -l unlimited".to_owned(),
            );
        }
        for port in self.interfaces.iter().filter(|port| port.name != "lo") {
            let (name, mtu) = (&port.name, port.mtu);
            warn(
                // Interfaces without a driver are no devices: a veth says 10 Gbit/s, too.
                mtu < 9000
                    && port.driver.is_some()
                    && port.speed_mbit.is_some_and(|speed| speed >= 10_000),
                format!("{name}: MTU {mtu}, 9000 recommended on the GPU network"),
            );
        }
        out
    }
}

fn governors() -> Vec<String> {
    let cpus = names(Path::new("/sys/devices/system/cpu"));
    let file = |cpu: &String| {
        text(&format!(
            "/sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor"
        ))
    };
    let mut found: Vec<String> = cpus
        .iter()
        .map(file)
        .filter(|name| !name.is_empty())
        .collect();
    found.sort();
    found.dedup();
    found
}

fn turbo() -> Option<bool> {
    match text("/sys/devices/system/cpu/intel_pstate/no_turbo").as_str() {
        "0" => return Some(true),
        "1" => return Some(false),
        _ => {}
    }
    match text("/sys/devices/system/cpu/cpufreq/boost").as_str() {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

fn interfaces() -> Vec<Interface> {
    let one = |name: String| {
        let file = |field: &str| text(&format!("/sys/class/net/{name}/{field}"));
        if file("operstate") == "down" {
            return None;
        }
        let driver = fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok();
        Some(Interface {
            mtu: file("mtu").parse().unwrap_or_default(),
            speed_mbit: file("speed").parse().ok(),
            driver: driver.and_then(|path| Some(path.file_name()?.to_str()?.to_owned())),
            firmware: firmware(&name),
            irqs: irqs(&name).len(),
            irq_cores: irq_cores(&irqs(&name)),
            name,
        })
    };
    names(Path::new("/sys/class/net"))
        .into_iter()
        .filter_map(one)
        .collect()
}

/// Numbers of an interface's interrupts.
fn irqs(interface: &str) -> Vec<String> {
    names(Path::new(&format!(
        "/sys/class/net/{interface}/device/msi_irqs"
    )))
}

fn irq_cores(irqs: &[String]) -> Vec<String> {
    let cores = |irq: &String| text(&format!("/proc/irq/{irq}/smp_affinity_list"));
    let mut found: Vec<String> = irqs.iter().map(cores).collect();
    found.retain(|list| !list.is_empty());
    found.sort();
    found.dedup();
    found
}

/// What ethtool says, where it is installed: often where only root looks for programs.
fn firmware(interface: &str) -> Option<String> {
    let said = |program: &str| Command::new(program).args(["-i", interface]).output();
    let output = said("ethtool")
        .or_else(|_| said("/usr/sbin/ethtool"))
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("firmware-version: "))?
        .trim();
    (!version.is_empty()).then(|| version.to_owned())
}

fn is_running(name: &str) -> bool {
    let processes = names(Path::new("/proc"));
    processes
        .iter()
        .any(|pid| text(&format!("/proc/{pid}/comm")) == name)
}

fn load_percent(loadavg: &str) -> u64 {
    let number = loadavg
        .split(' ')
        .next()
        .unwrap_or_default()
        .replace('.', "");
    number.parse().unwrap_or_default()
}

fn memlock(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn value_of<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (key, value) = line.split_once(':')?;
    (key.trim() == name).then(|| value.trim())
}

fn text(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::{Interface, Machine, load_percent, memlock};

    #[test]
    fn this_host_has_a_processor_and_a_loopback_interface() {
        let here = Machine::here();
        assert!(here.cores > 0 && !here.kernel.is_empty());
        assert!(
            here.interfaces
                .iter()
                .any(|port| port.name == "lo" && port.mtu > 0)
        );
    }

    #[test]
    fn the_load_is_that_of_the_moment() {
        let long_ago = Machine {
            load_percent: u64::MAX,
            cores: 3,
            ..Machine::default()
        };
        let now = long_ago.with_load_now();
        assert!(now.load_percent < u64::MAX && now.cores == 3);
    }

    #[test]
    fn what_spoils_a_measurement_is_said() {
        let spoiled = Machine {
            cores: 64,
            load_percent: load_percent("3.08 1.00 0.50 1/100 1"),
            governors: vec!["powersave".into()],
            turbo: Some(true),
            irqbalance: true,
            memlock_bytes: memlock(
                "Max locked memory         65536                65536                bytes",
            ),
            rdma: vec!["mlx5_0".into()],
            interfaces: vec![Interface {
                name: "ens1".into(),
                mtu: 1500,
                speed_mbit: Some(25_000),
                driver: Some("mlx5_core".into()),
                firmware: None,
                irqs: 0,
                irq_cores: Vec::new(),
            }],
            ..Machine::default()
        };
        let warnings = spoiled.warnings().join("\n");
        for word in [
            "3.08",
            "powersave",
            "turbo",
            "irqbalance",
            "memlock",
            "MTU 1500",
        ] {
            assert!(warnings.contains(word), "{word}: {warnings}");
        }
        let mut in_a_container = spoiled;
        in_a_container.interfaces[0].driver = None;
        assert!(!in_a_container.warnings().join("\n").contains("MTU"));
        let good = Machine {
            cores: 64,
            governors: vec!["performance".into()],
            ..Machine::default()
        };
        assert_eq!(good.warnings(), Vec::<String>::new());
    }
}
