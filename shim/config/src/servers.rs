//! Devices of several servers in one program: what is told about each of them.
#![forbid(unsafe_code)]

use crate::values::TokenLines;
use crate::{ClientConfig, ConfigError, Secret, vars};

/// A server after the first.
#[derive(Clone, Debug)]
pub(crate) struct Other {
    pub(crate) server: String,
    pub(crate) token: Option<Secret>,
}

impl ClientConfig {
    /// One configuration for each server, in the order of the program's devices, with the number of devices that was said
    /// for it. With one server that is this configuration.
    ///
    /// # Errors
    /// There is not one number of devices for each server.
    pub fn each(&self) -> Result<Vec<Self>, ConfigError> {
        let mut each = self.apart();
        let counts = &self.device_counts;
        if !counts.is_empty() && counts.len() != each.len() {
            let (servers, numbers) = (each.len(), counts.len());
            return Err(ConfigError::Value {
                origin: vars::DEVICES.to_owned(),
                message: format!(
                    "{servers} servers and {numbers} numbers of devices; write one for each server, such as 2,1, or all"
                ),
            });
        }
        for (config, count) in each.iter_mut().zip(counts) {
            config.devices = Some(*count);
        }
        Ok(each)
    }

    /// One configuration for each server, with all its devices.
    #[must_use]
    pub fn apart(&self) -> Vec<Self> {
        let alone = |server: &str, token: &Option<Secret>| Self {
            server: server.to_owned(),
            token: token.clone(),
            devices: None,
            device_counts: Vec::new(),
            others: Vec::new(),
            ..self.clone()
        };
        let first = alone(&self.server, &self.token);
        let others = self
            .others
            .iter()
            .map(|other| alone(&other.server, &other.token));
        std::iter::once(first).chain(others).collect()
    }

    /// Every server as a text that is read as the same list: `gpu1:7474,gpu2:7474`.
    #[must_use]
    pub fn server_list(&self) -> String {
        let others = self.others.iter().map(|other| other.server.as_str());
        let all: Vec<&str> = std::iter::once(self.server.as_str())
            .chain(others)
            .collect();
        all.join(",")
    }

    /// How many servers are named.
    #[must_use]
    pub fn server_count(&self) -> usize {
        self.others.len().saturating_add(1)
    }
}

/// Which token is whose: one line is everybody's, several lines are the servers' in their order.
pub(crate) fn assign(
    mut servers: Vec<String>,
    tokens: Option<TokenLines>,
) -> Result<(String, Option<Secret>, Vec<Other>), String> {
    let others = servers.split_off(servers.len().min(1));
    let first = servers.pop().unwrap_or_default();
    let (token, rest) = match tokens {
        Some(lines) => (Some(lines.first), lines.rest),
        None => (None, Vec::new()),
    };
    // Further lines are notes where there is one server.
    if !rest.is_empty() && rest.len() < others.len() {
        return Err(format!(
            "{} servers and {} lines of tokens; write one line for all, or one for each",
            others.len().saturating_add(1),
            rest.len().saturating_add(1)
        ));
    }
    let others = others.into_iter().enumerate().map(|(index, server)| Other {
        server,
        token: rest.get(index).or(token.as_ref()).cloned(),
    });
    let others = others.collect();
    Ok((first, token, others))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use crate::{ClientConfig, Secret, vars};

    fn config(server: &str, devices: &str, tokens: Option<&str>) -> Result<ClientConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        if let Some(tokens) = tokens {
            std::fs::write(&file, tokens).unwrap();
        }
        ClientConfig::load(|name| match name {
            vars::SERVER => Some(server.to_owned()),
            vars::DEVICES => Some(devices.to_owned()),
            vars::TOKEN_FILE if tokens.is_some() => Some(file.display().to_string()),
            _ => None,
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn each_server_has_its_token_and_its_number_of_devices() {
        let all = config("a,b:1", "2,1", Some("first\nsecond\n")).unwrap();
        assert_eq!(
            (all.server_list(), all.server_count()),
            ("a:7474,b:1".to_owned(), 2)
        );
        let each = all.each().unwrap();
        assert_eq!(
            (each[0].server.as_str(), each[0].devices),
            ("a:7474", Some(2))
        );
        assert_eq!((each[1].server.as_str(), each[1].devices), ("b:1", Some(1)));
        assert_eq!(each[0].token, Some(Secret::new("first")));
        assert_eq!(each[1].token, Some(Secret::new("second")));
        assert_eq!(each[1].server_count(), 1);
    }

    #[test]
    fn one_token_is_everybodys() {
        let each = config("a,b", "all", Some("one\n")).unwrap().each().unwrap();
        assert_eq!(each[1].token, Some(Secret::new("one")));
        assert_eq!(each[1].devices, None);
        let alone = config("a", "3", Some("one\na note\n")).unwrap();
        assert_eq!(alone.token, Some(Secret::new("one")));
        assert_eq!(alone.devices, Some(3));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers() {
        let error = config("a,b", "3", None).unwrap().each().unwrap_err();
        assert!(
            error.to_string().contains("2 servers and 1 numbers"),
            "{error}"
        );
        let error = config("a,b,c", "all", Some("x\ny\n")).unwrap_err();
        assert!(error.contains("3 servers and 2 lines"), "{error}");
    }
}
