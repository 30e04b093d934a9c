//! `farcall devices`: what a server has and how it is used.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use farcall_config::format_size;
use farcall_gpu_exec::Inventory;

use crate::args::DevicesArgs;
use crate::connect;
use crate::failure::{Failure, written};
use crate::table::{self, Align};

pub(crate) fn devices(args: &DevicesArgs) -> Result<ExitCode, Failure> {
    let config = connect::single(&args.server)?;
    let inventory = connect::ask(&config, &args.server)?;
    let out = &mut io::stdout().lock();
    written(if args.json {
        write_json(out, &inventory)
    } else {
        write_table(out, &config.server, &inventory)
    })
}

fn write_json(out: &mut dyn Write, inventory: &Inventory) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, inventory)?;
    writeln!(out)
}

fn write_table(out: &mut dyn Write, server: &str, inventory: &Inventory) -> io::Result<()> {
    let Inventory {
        server_name,
        driver_version,
        kind,
        devices,
    } = inventory;
    writeln!(
        out,
        "{server_name} ({server}), CUDA {}.{}, {kind} device{}",
        driver_version / 1000,
        driver_version % 1000 / 10,
        if devices.len() == 1 { "" } else { "s" }
    )?;
    let header = [
        ("device", Align::Right),
        ("name", Align::Left),
        ("sm", Align::Right),
        ("total", Align::Right),
        ("used", Align::Right),
        ("free", Align::Right),
        ("sessions", Align::Right),
        ("uuid", Align::Left),
    ];
    let rows: Vec<Vec<String>> = devices
        .iter()
        .map(|device| {
            vec![
                device.ordinal.to_string(),
                device.name.clone(),
                format!("{}.{}", device.sm / 10, device.sm % 10),
                format_size(device.total_bytes),
                format_size(device.used_bytes),
                format_size(device.free_bytes),
                device.sessions.to_string(),
                device.uuid.clone(),
            ]
        })
        .collect();
    table::write(out, &header, &rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{write_json, write_table};
    use farcall_gpu_exec::{DeviceKind, DeviceUsage, Inventory};

    fn inventory() -> Inventory {
        let device = DeviceUsage {
            ordinal: 0,
            name: "Farcall soft device".to_owned(),
            uuid: "GPU-01020304-0506-0708-090a-0b0c0d0e0f10".to_owned(),
            sm: 90,
            total_bytes: 4 << 30,
            used_bytes: 3 << 29,
            free_bytes: (4 << 30) - (3 << 29),
            sessions: 2,
        };
        Inventory {
            server_name: "gpu1".to_owned(),
            driver_version: 13000,
            kind: DeviceKind::Soft,
            devices: vec![device],
        }
    }

    #[test]
    fn table() {
        let mut out = Vec::new();
        write_table(&mut out, "gpu1:7474", &inventory()).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.starts_with("gpu1 (gpu1:7474), CUDA 13.0, soft device\n"),
            "{text}"
        );
        for part in [
            "Farcall soft device",
            "9.0",
            "4 GiB",
            "1.5 GiB",
            "2.5 GiB",
            "GPU-01020304",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn json_has_bytes_and_kind() {
        let mut out = Vec::new();
        write_json(&mut out, &inventory()).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["kind"], "soft");
        assert_eq!(value["devices"][0]["used_bytes"], 3_u64 << 29);
        assert_eq!(value["devices"][0]["sessions"], 2);
    }
}
