//! `farcall cdi`: what container engines need to know to put the shim, its settings and the right paths into a container.
#![forbid(unsafe_code)]

mod spec;

use std::env::consts::ARCH;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use farcall_config::{ClientConfig, SOCKET_PREFIX, vars};

use self::spec::{Device, DeviceNode, Edits, KIND, Mount, Spec, VERSION};
use crate::args::CdiArgs;
use crate::connect::configuration;
use crate::failure::{Failure, code, written};
use crate::run::{absolute, libraries};

/// Where images of NVIDIA and PyTorch look first (their `LD_LIBRARY_PATH`).
const LIBRARIES: &str = "/usr/local/nvidia/lib64";
/// Where settings are in the container.
const SETTINGS: &str = "/etc/farcall";
/// Where `farcall` is in the container.
const PROGRAM: &str = "/usr/local/bin/farcall";
/// Numbers of devices that have a name of their own, beside `all`.
const COUNTS: [u32; 5] = [1, 2, 4, 8, 16];
/// What is mounted cannot be changed, and gives nobody more rights.
const READ_ONLY: [&str; 4] = ["ro", "nosuid", "nodev", "bind"];

/// `farcall cdi`.
pub(crate) fn cdi(args: &CdiArgs) -> Result<ExitCode, Failure> {
    let spec = spec(args)?;
    let failed = |error: serde_json::Error| {
        Failure::new(
            code::FAILED,
            error.to_string(),
            "FARCALL_LOG=debug says more",
        )
    };
    let mut text = serde_json::to_string_pretty(&spec).map_err(failed)?;
    text.push('\n');
    let Some(path) = &args.output else {
        return written(io::stdout().lock().write_all(text.as_bytes()));
    };
    write(path, &text).map_err(|error| {
        let what = format!("cannot write {}: {error}", path.display());
        let advice = "engines look in /etc/cdi and /var/run/cdi; writing there needs root";
        Failure::new(code::FAILED, what, advice)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// An engine that reads at the same time sees all of it or nothing.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    // Engines read names that end in .json or .yaml alone.
    let beside = path.with_extension("new");
    fs::write(&beside, text)?;
    fs::rename(beside, path)
}

fn spec(args: &CdiArgs) -> Result<Spec, Failure> {
    let mut edits = Edits::default();
    let private = tempfile::tempdir().map_err(|error| {
        let advice = "name another directory with TMPDIR";
        Failure::new(code::FAILED, error.to_string(), advice)
    })?;
    add_libraries(&mut edits, &libraries::find(private.path())?)?;
    let devices = if args.pool.pool.is_some() {
        vec![pool_device(args)?]
    } else {
        add_server(&mut edits, args)?;
        server_devices()
    };
    add_share(&mut edits, args);
    if args.rdma {
        add_rdma(&mut edits, Path::new("/dev/infiniband"))?;
    }
    Ok(Spec {
        cdi_version: VERSION,
        kind: KIND,
        devices,
        container_edits: edits,
    })
}

/// All of a server's devices, or so many.
fn server_devices() -> Vec<Device> {
    let names = COUNTS.iter().map(ToString::to_string);
    let device = |name: String| Device {
        container_edits: Edits {
            env: vec![format!("{}={name}", vars::DEVICES)],
            ..Edits::default()
        },
        name,
    };
    std::iter::once("all".to_owned())
        .chain(names)
        .map(device)
        .collect()
}

/// Where loaders look without being told: with a library path of NVIDIA's images, on Debian and its like, on Red Hat's.
fn places() -> [String; 3] {
    [
        LIBRARIES.to_owned(),
        format!("/usr/lib/{ARCH}-linux-gnu"),
        "/usr/lib64".to_owned(),
    ]
}

fn add_libraries(edits: &mut Edits, folder: &Path) -> Result<(), Failure> {
    for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        let host = real(&folder.join(name))?;
        for place in places() {
            edits.mounts.push(mount(&host, &format!("{place}/{name}"))?);
        }
    }
    // Triton asks ldconfig first, which knows nothing of what is mounted.
    edits.env.push(format!("TRITON_LIBCUDA_PATH={LIBRARIES}"));
    Ok(())
}

fn add_server(edits: &mut Edits, args: &CdiArgs) -> Result<(), Failure> {
    let config = configuration(&args.server)?;
    if let Some(path) = config.server.strip_prefix(SOCKET_PREFIX) {
        // The folder: a server that is started again makes another socket.
        let folder = Path::new(path).parent().unwrap_or(Path::new("/"));
        let folder = real(folder)?;
        let mut socket = mount(&folder, &folder.to_string_lossy())?;
        socket.options = vec!["nosuid", "nodev", "bind"];
        edits.mounts.push(socket);
    }
    edits
        .env
        .push(format!("{}={}", vars::SERVER, config.server));
    if let Some(file) = &config.file {
        let inside = format!("{SETTINGS}/client.toml");
        edits.mounts.push(mount(&real(file)?, &inside)?);
        edits.env.push(format!("{}={inside}", vars::CONFIG));
    }
    if let Some(file) = token_file(args, &config)? {
        let inside = format!("{SETTINGS}/token");
        edits.mounts.push(mount(&real(&file)?, &inside)?);
        edits.env.push(format!("{}={inside}", vars::TOKEN_FILE));
    }
    for (variable, typed) in args.server.network.variables() {
        if let Some(value) = typed {
            edits.env.push(format!("{variable}={value}"));
        }
    }
    Ok(())
}

/// The token itself is never written: who may read the spec is everybody.
fn token_file(args: &CdiArgs, config: &ClientConfig) -> Result<Option<PathBuf>, Failure> {
    let named = args.server.token_file.clone().or_else(|| {
        let named = std::env::var_os(vars::TOKEN_FILE).filter(|path| !path.is_empty());
        named.map(PathBuf::from)
    });
    match named {
        Some(path) => absolute(&path).map(Some),
        None if config.token.is_none() => Ok(None),
        None => Err(Failure::new(
            code::CONFIG,
            "the token comes from a variable or from within client.toml",
            "put it into a file, and name that with --token-file FILE",
        )),
    }
}

/// The pool: who asks it says with `farcall run -n` for how many devices.
fn pool_device(args: &CdiArgs) -> Result<Device, Failure> {
    let mut edits = Edits::default();
    let pool = args.pool.pool.as_deref().unwrap_or_default();
    edits.env.push(format!("FARCALL_POOL={pool}"));
    edits.env.push(format!("{}={LIBRARIES}", vars::LIB_DIR));
    for (file, variable, name) in [
        (&args.pool.pool_ca, "FARCALL_POOL_CA", "ca.pem"),
        (
            &args.pool.pool_token_file,
            "FARCALL_POOL_TOKEN_FILE",
            "pool-token",
        ),
    ] {
        if let Some(file) = file {
            let inside = format!("{SETTINGS}/{name}");
            edits.mounts.push(mount(&real(&absolute(file)?)?, &inside)?);
            edits.env.push(format!("{variable}={inside}"));
        }
    }
    // It is what asks the pool.
    let program = std::env::current_exe().map_err(|error| {
        let what = format!("cannot tell where farcall is: {error}");
        Failure::new(code::FAILED, what, "start it by its whole path")
    })?;
    edits.mounts.push(mount(&real(&program)?, PROGRAM)?);
    Ok(Device {
        name: "all".to_owned(),
        container_edits: edits,
    })
}

fn add_share(edits: &mut Edits, args: &CdiArgs) {
    if let Some(bytes) = args.memory_bytes {
        edits.env.push(format!("{}={bytes}", vars::MEMORY));
    }
    if let Some(permille) = args.share_permille {
        let share = f64::from(permille) / 1000.0;
        edits.env.push(format!("{}={share:.3}", vars::SHARE));
    }
}

/// The device files that RDMA needs.
fn add_rdma(edits: &mut Edits, folder: &Path) -> Result<(), Failure> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| name.starts_with("uverbs") || name == "rdma_cm")
        .collect();
    names.sort();
    if names.is_empty() {
        let what = format!("there are no RDMA devices in {}", folder.display());
        let advice = "load the driver of the network card, or leave --rdma out: TCP is used";
        return Err(Failure::new(code::FAILED, what, advice));
    }
    let node = |name: &String| DeviceNode {
        path: folder.join(name).display().to_string(),
    };
    edits.device_nodes.extend(names.iter().map(node));
    Ok(())
}

/// Where a file really is: links need not lead anywhere in another namespace.
fn real(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(|error| {
        let what = format!("{}: {error}", path.display());
        Failure::new(
            code::CONFIG,
            what,
            "what a container is to have must be there",
        )
    })
}

fn mount(host: &Path, inside: &str) -> Result<Mount, Failure> {
    let host = host.to_str().ok_or_else(|| {
        let what = format!("{}: not a path in UTF-8", host.display());
        Failure::new(code::CONFIG, what, "put it in another place")
    })?;
    Ok(Mount {
        host_path: host.to_owned(),
        container_path: inside.to_owned(),
        options: READ_ONLY.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::add_rdma;
    use super::spec::Edits;

    #[test]
    fn rdma_needs_its_device_files() {
        let folder = tempfile::tempdir().unwrap();
        let mut edits = Edits::default();
        assert!(add_rdma(&mut edits, folder.path()).is_err());
        for name in ["uverbs1", "uverbs0", "rdma_cm", "issm0"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        add_rdma(&mut edits, folder.path()).unwrap();
        let nodes = edits.device_nodes.iter();
        let names: Vec<_> = nodes
            .map(|it| it.path.rsplit('/').next().unwrap())
            .collect();
        assert_eq!(names, ["rdma_cm", "uverbs0", "uverbs1"]);
    }
}
