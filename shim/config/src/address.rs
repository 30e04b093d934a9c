//! Where a server is: `HOST`, `HOST:PORT`, `[IPV6]:PORT`, `unix:/PATH`.
#![forbid(unsafe_code)]

/// Port of a server where none is said.
pub const DEFAULT_PORT: u16 = 7474;
/// The server where none is said: the one on this machine.
pub const DEFAULT_SERVER: &str = "127.0.0.1:7474";

/// What the path of a server's socket is written behind.
pub const SOCKET_PREFIX: &str = "unix:";

/// `text` as `HOST:PORT`, with [`DEFAULT_PORT`] where it names none, or `unix:/PATH`. Resolves nothing.
///
/// # Errors
/// The message says what is allowed.
pub fn parse_server(text: &str) -> Result<String, String> {
    let bad = |why: &str| {
        Err(format!(
            "{text:?} is not a server address ({why}); write HOST:PORT, for example gpu1:7474 or [fd00::1]:7474, or unix:/PATH"
        ))
    };
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return bad("it is empty");
    }
    if let Some(path) = trimmed.strip_prefix(SOCKET_PREFIX) {
        return if path.starts_with('/') && !path.contains(char::is_control) {
            Ok(trimmed.to_owned())
        } else {
            bad("the path of a socket begins with /")
        };
    }
    if trimmed.contains("://") {
        return bad("it is a URL");
    }
    if trimmed.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
        return bad("a host name has no spaces or slashes");
    }
    let (host, port) = match split(trimmed) {
        Some(parts) => parts,
        None => return bad("an IPv6 address goes into brackets"),
    };
    if host.is_empty() || host == "[]" {
        return bad("it names no host");
    }
    match port {
        None => Ok(format!("{host}:{DEFAULT_PORT}")),
        Some(port) => match port.parse::<u16>() {
            Ok(0) | Err(_) => bad("the port is a number from 1 to 65535"),
            Ok(port) => Ok(format!("{host}:{port}")),
        },
    }
}

/// `text` as a list of [`parse_server`], separated by commas: a program can have devices of several servers.
///
/// # Errors
/// The message says what is allowed.
pub fn parse_servers(text: &str) -> Result<String, String> {
    let servers: Vec<String> = text
        .split(',')
        .map(parse_server)
        .collect::<Result<_, _>>()?;
    if servers.len() > SERVERS_MAX {
        return Err(format!(
            "{} servers are named; a program can have devices of {SERVERS_MAX} at most",
            servers.len()
        ));
    }
    Ok(servers.join(","))
}

/// What is added to the PCI domain of the devices of a program's server with this number, so that no two devices have the
/// same bus address: CUDA and NVML name devices by it.
#[must_use]
pub fn pci_domain_offset(server: usize) -> u32 {
    const DOMAINS_OF_ONE: u32 = 0x100;
    u32::try_from(server)
        .unwrap_or(u32::MAX)
        .saturating_mul(DOMAINS_OF_ONE)
}

/// Servers that one program can have devices of: each takes a piece of its address space.
pub const SERVERS_MAX: usize = 16;

/// Host (with its brackets, if it has some) and port; `None` where colons are ambiguous.
fn split(text: &str) -> Option<(&str, Option<&str>)> {
    if text.starts_with('[') {
        let (inside, rest) = text.split_once(']')?;
        let host = text.get(..inside.len().checked_add(1)?)?;
        return match rest {
            "" => Some((host, None)),
            _ => Some((host, Some(rest.strip_prefix(':')?))),
        };
    }
    match text.split_once(':') {
        None => Some((text, None)),
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => Some((host, Some(port))),
    }
}

#[cfg(test)]
mod tests {
    use super::{SERVERS_MAX, parse_server, parse_servers};

    #[test]
    fn accepted() {
        for (text, server) in [
            ("gpu1", "gpu1:7474"),
            ("gpu1:9000", "gpu1:9000"),
            ("10.0.0.1", "10.0.0.1:7474"),
            ("[::1]", "[::1]:7474"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            (" gpu1.example:7474\n", "gpu1.example:7474"),
            ("unix:/run/farcall.sock", "unix:/run/farcall.sock"),
        ] {
            assert_eq!(parse_server(text).as_deref(), Ok(server), "{text}");
        }
    }

    #[test]
    fn several() {
        assert_eq!(
            parse_servers(" gpu1, gpu2:9000").as_deref(),
            Ok("gpu1:7474,gpu2:9000")
        );
        assert!(parse_servers("gpu1,,gpu2").is_err_and(|why| why.contains("empty")));
        let many = vec!["gpu"; SERVERS_MAX];
        assert!(parse_servers(&many.join(",")).is_ok());
        let too_many = format!("{},gpu", many.join(","));
        assert!(parse_servers(&too_many).is_err_and(|why| why.contains("16 at most")));
    }

    #[test]
    fn refused_with_a_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("http://gpu1:80", "URL"),
            ("gpu1:", "1 to 65535"),
            ("gpu1:0", "1 to 65535"),
            ("gpu1:70000", "1 to 65535"),
            ("gpu1:x", "1 to 65535"),
            (":7474", "no host"),
            ("::1", "brackets"),
            ("[::1", "brackets"),
            ("[::1]x", "brackets"),
            ("[]:1", "no host"),
            ("a b:1", "spaces"),
            ("unix:farcall.sock", "begins with /"),
        ] {
            let error = parse_server(text).err().unwrap_or_default();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
