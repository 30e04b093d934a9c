//! A pool's GPUs and leases as they are now, for `farcall top`.
#![forbid(unsafe_code)]

use std::io;

use farcall_pool::model::Stage;
use farcall_pool::state::views::{GpuView, LeaseView};
use serde::Serialize;

use super::args::PoolArgs;
use super::show::{GPUS, LEASES, gpu_row, lease_row};
use super::{client, failure};
use crate::failure::Failure;
use crate::table;

/// What is there now.
#[derive(Serialize)]
pub(crate) struct Now {
    gpus: Vec<GpuView>,
    /// All, for who may see them; else the caller's own.
    leases: Vec<LeaseView>,
}

impl Now {
    /// Asks the pool. Blocks for two round trips.
    pub(crate) fn ask(args: &PoolArgs) -> Result<Self, Failure> {
        let pool = client(args)?;
        let leases = match pool.get("/v1/leases?all=true") {
            Err(error) if error.status() == Some(403) => pool.get("/v1/leases"),
            other => other,
        };
        Ok(Self {
            gpus: pool.get("/v1/gpus").map_err(|error| failure(&error))?,
            leases: leases.map_err(|error| failure(&error))?,
        })
    }

    /// Writes the tables.
    pub(crate) fn show(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let gpus: Vec<_> = self.gpus.iter().map(gpu_row).collect();
        table::write(out, &GPUS, &gpus)?;
        out.push(b'\n');
        let open = self.leases.iter();
        let open = open.filter(|lease| matches!(lease.stage, Stage::Queued | Stage::Held));
        let leases: Vec<_> = open.map(lease_row).collect();
        table::write(out, &LEASES, &leases)
    }
}
