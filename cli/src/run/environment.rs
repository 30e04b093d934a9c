//! What makes an unmodified program load our libraries and reach the server.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use farcall_config::vars;

use super::absolute;
use super::servers::Chosen;
use crate::args::{ServerArgs, ShareArgs};
use crate::failure::Failure;

pub(crate) fn set(
    command: &mut Command,
    chosen: &Chosen,
    server: &ServerArgs,
    share: &ShareArgs,
    libraries: &Path,
) -> Result<(), Failure> {
    command.env(
        "LD_LIBRARY_PATH",
        prepended(libraries, std::env::var_os("LD_LIBRARY_PATH")),
    );
    // Triton asks ldconfig before LD_LIBRARY_PATH, and would find another driver there, or none.
    command.env("TRITON_LIBCUDA_PATH", libraries);
    command.env(vars::SERVER, &chosen.servers);
    // The program may change its directory before its first driver call.
    for name in [vars::CONFIG, vars::TOKEN_FILE, vars::STATS] {
        if let Some(path) = std::env::var_os(name).filter(|path| !path.is_empty()) {
            command.env(name, absolute(Path::new(&path))?);
        }
    }
    if let Some(path) = &server.token_file {
        // The path and not the token: environments are easily read.
        command
            .env(vars::TOKEN_FILE, absolute(path)?)
            .env_remove(vars::TOKEN);
    }
    if !chosen.counts.is_empty() {
        let counts: Vec<String> = chosen.counts.iter().map(u32::to_string).collect();
        command.env(vars::DEVICES, counts.join(","));
    } else if let Some(devices) = share.devices {
        command.env(
            vars::DEVICES,
            devices
                .0
                .map_or_else(|| "all".to_owned(), |count| count.to_string()),
        );
    }
    if let Some(bytes) = share.memory_bytes {
        command.env(vars::MEMORY, bytes.to_string());
    }
    if let Some(permille) = share.share_permille {
        command.env(vars::SHARE, format!("{:.3}", f64::from(permille) / 1000.0));
    }
    for (variable, typed) in server.network.variables() {
        if let Some(value) = typed {
            command.env(variable, value);
        }
    }
    Ok(())
}

fn prepended(directory: &Path, rest: Option<OsString>) -> OsString {
    let mut path = directory.as_os_str().to_owned();
    // An empty entry would mean the working directory.
    if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
        path.push(":");
        path.push(rest);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::prepended;
    use std::path::Path;

    #[test]
    fn ours_is_first_and_nothing_is_empty() {
        let ours = Path::new("/f");
        assert_eq!(prepended(ours, None), "/f");
        assert_eq!(prepended(ours, Some("".into())), "/f");
        assert_eq!(prepended(ours, Some("/a:/b".into())), "/f:/a:/b");
    }
}
