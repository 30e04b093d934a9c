//! Which servers a command uses, and how many devices of each.
#![forbid(unsafe_code)]

use farcall_config::{ClientConfig, format_size};
use farcall_gpu_exec::Inventory;

use crate::args::{DeviceCount, ServerArgs, ShareArgs};
use crate::connect;
use crate::failure::{Failure, code};

/// What the command is told.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// As a client's configuration has it: `gpu1:7474,gpu2:7474`.
    pub(crate) servers: String,
    /// Devices of each; empty: whatever it is told otherwise.
    pub(crate) counts: Vec<u32>,
}

/// Asks the servers unless that is not wanted. Blocks for some seconds at most.
pub(crate) fn choose(
    config: &ClientConfig,
    server: &ServerArgs,
    share: &ShareArgs,
) -> Result<Chosen, Failure> {
    let apart = config.apart();
    let inventories: Vec<Inventory> = if share.no_check {
        Vec::new()
    } else {
        let ask = |config: &ClientConfig| connect::ask(config, server);
        apart.iter().map(ask).collect::<Result<_, _>>()?
    };
    let counts = match apart.as_slice() {
        [_] if share.each.is_empty() => {
            let wanted = share
                .devices
                .map_or(config.devices, |DeviceCount(typed)| typed);
            if let (Some(wanted), Some(inventory)) = (wanted, inventories.first()) {
                enough_devices(inventory, wanted)?;
            }
            Vec::new()
        }
        _ => spread(config, share, &inventories)?,
    };
    let used = if counts.is_empty() {
        apart.len()
    } else {
        counts.len()
    };
    let memory_bytes = share.memory_bytes.or(config.memory_bytes);
    for inventory in inventories.iter().take(used) {
        enough_memory(inventory, memory_bytes)?;
    }
    let servers: Vec<&str> = apart
        .iter()
        .take(used)
        .map(|config| config.server.as_str())
        .collect();
    Ok(Chosen {
        servers: servers.join(","),
        counts,
    })
}

/// How many devices of each of several servers.
fn spread(
    config: &ClientConfig,
    share: &ShareArgs,
    inventories: &[Inventory],
) -> Result<Vec<u32>, Failure> {
    let each = match (&share.each, share.devices) {
        (each, _) if !each.is_empty() => each.clone(),
        (_, Some(DeviceCount(Some(wanted)))) if share.no_check => {
            return Err(Failure::new(
                2,
                format!("{wanted} devices of several servers cannot be chosen without asking them"),
                "leave --no-check away, or set FARCALL_DEVICES to a number for each: 2,1",
            ));
        }
        (_, Some(DeviceCount(Some(wanted)))) => return fill(inventories, wanted),
        (_, Some(DeviceCount(None))) => return Ok(Vec::new()),
        (_, None) => {
            let each = config
                .each()
                .map_err(|error| connect::config_failure(&error))?;
            let counts: Option<Vec<u32>> = each.iter().map(|config| config.devices).collect();
            counts.unwrap_or_default()
        }
    };
    for (inventory, wanted) in inventories.iter().zip(&each) {
        enough_devices(inventory, *wanted)?;
    }
    Ok(each)
}

/// All devices of the first server, then of the next, until there are enough.
fn fill(inventories: &[Inventory], wanted: u32) -> Result<Vec<u32>, Failure> {
    let (mut counts, mut left) = (Vec::new(), wanted);
    for inventory in inventories {
        let there = u32::try_from(inventory.devices.len()).unwrap_or(u32::MAX);
        let taken = there.min(left);
        if taken > 0 {
            counts.push(taken);
        }
        left -= taken;
    }
    if left == 0 {
        return Ok(counts);
    }
    let there = wanted - left;
    Err(Failure::new(
        code::UNAVAILABLE,
        format!("{wanted} devices were asked for, and the servers have {there} together"),
        format!("ask for at most {there} with -n, or name more servers with --server A,B,..."),
    ))
}

/// Fewer devices than asked for are no answer.
fn enough_devices(inventory: &Inventory, wanted: u32) -> Result<(), Failure> {
    let there = inventory.devices.len();
    if usize::try_from(wanted).unwrap_or(usize::MAX) <= there {
        return Ok(());
    }
    Err(Failure::new(
        code::UNAVAILABLE,
        format!(
            "{wanted} devices were asked for, and {} has {there}",
            inventory.server_name
        ),
        format!("ask for at most {there} with -n, or name another server with --server HOST:PORT"),
    ))
}

/// Less memory than asked for is no answer.
fn enough_memory(inventory: &Inventory, wanted: Option<u64>) -> Result<(), Failure> {
    let largest = inventory
        .devices
        .iter()
        .map(|device| device.total_bytes)
        .max();
    match (wanted, largest) {
        (Some(wanted), Some(largest)) if wanted > largest => {
            let (wanted, largest) = (format_size(wanted), format_size(largest));
            Err(Failure::new(
                code::UNAVAILABLE,
                format!(
                    "{wanted} of memory were asked for, and the largest device of {} has {largest}",
                    inventory.server_name
                ),
                format!(
                    "ask for at most {largest} with -m, or name another server with --server HOST:PORT"
                ),
            ))
        }
        _ => Ok(()),
    }
}
