//! What can be typed to make and serve a pool.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// `farcall pool init`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall pool init --dir /var/lib/farcall-pool --host pool.example --host 10.0.0.5
  farcall pool serve --dir /var/lib/farcall-pool --listen 0.0.0.0:7475
Then give ca.pem to servers and clients, and admin.token to administrators.")]
pub(crate) struct InitArgs {
    /// Directory of the pool
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Name or address by which the pool is reached; may be repeated
    #[arg(long = "host", value_name = "HOST", default_values = ["localhost", "127.0.0.1"])]
    pub(crate) hosts: Vec<String>,
}

/// `farcall pool certify`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall pool certify --dir /var/lib/farcall-pool --host pool.example --host 10.0.0.5
  systemctl restart farcall-pool                 takes the new one into use
Servers and clients need nothing new: the authority, ca.pem, stays.")]
pub(crate) struct CertifyArgs {
    /// Directory that `farcall pool init` made
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Name or address by which the pool is reached from now on; may be repeated
    #[arg(long = "host", value_name = "HOST", required = true)]
    pub(crate) hosts: Vec<String>,
}

/// `farcall pool serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall pool serve --dir /var/lib/farcall-pool --listen 0.0.0.0:7475
  farcall pool serve --dir /tmp/pool --plain     without TLS, for this machine only
  farcall pool serve --dir /var/lib/farcall-pool --listen 10.0.0.5:7475 --etcd http://10.0.0.1:2379,http://10.0.0.2:2379
                                                 one of several nodes: each has a copy of the directory

No GPU call passes through it: sessions go on while it is down.")]
pub(crate) struct PoolServeArgs {
    /// Directory that `farcall pool init` made
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Address to listen on; port 0 takes any free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7475")]
    pub(crate) listen: String,
    /// Plain HTTP; only a loopback address can be listened on
    #[arg(long)]
    pub(crate) plain: bool,
    /// Keep the pool in this etcd, so that several nodes can serve it: http(s)://HOST:PORT of its members
    #[arg(long, value_name = "URL,...", value_delimiter = ',')]
    pub(crate) etcd: Vec<String>,
    /// File with etcd's authority, which https needs
    #[arg(long, value_name = "FILE", requires = "etcd", value_hint = ValueHint::FilePath)]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// Where the other nodes reach this one [default: the address that it listens on]
    #[arg(long, value_name = "HOST:PORT", requires = "etcd", value_parser = parse_node)]
    pub(crate) node: Option<String>,
}

fn parse_node(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|it| it > 0) => {
            Ok(text.to_owned())
        }
        _ => Err(format!("{text:?} is not HOST:PORT")),
    }
}
