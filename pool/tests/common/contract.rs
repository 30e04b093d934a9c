//! Answers and bodies against the document of the interface.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use farcall_pool::api::routes;
use jsonschema::Validator;
use serde_json::{Value, json};

/// What one operation takes and answers.
pub(crate) struct Operation {
    pub(crate) method: String,
    /// As the document has it: `/v1/leases/{lease}`.
    pub(crate) path: String,
    /// Schema of its body, if it has one.
    pub(crate) body: Option<Value>,
    takes: Option<Validator>,
    /// By status, or by its first digit and `XX`; then by media type.
    answers: BTreeMap<String, BTreeMap<String, Validator>>,
}

/// The document, and what was seen of it.
pub(crate) struct Contract {
    pub(crate) document: Value,
    pub(crate) operations: Vec<Operation>,
    problem: Validator,
    seen: Mutex<BTreeSet<(String, String, u16)>>,
}

impl Contract {
    pub(crate) fn new() -> Self {
        let (_, document) = routes();
        let document: Value = serde_json::from_str(&document.to_json().unwrap()).unwrap();
        let mut strict = document["components"].clone();
        forbid_others(&mut strict);
        let validator = |schema: &Value| {
            let mut schema = schema.clone();
            schema["components"] = strict.clone();
            jsonschema::validator_for(&schema).unwrap()
        };
        let mut operations = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let body = operation["requestBody"]["content"]["application/json"].get("schema");
                let answers = operation["responses"].as_object().unwrap().iter();
                let answers = answers.map(|(status, answer)| {
                    let content = answer["content"].as_object().into_iter().flatten();
                    let content =
                        content.map(|(kind, it)| (kind.clone(), validator(&it["schema"])));
                    (status.clone(), content.collect())
                });
                operations.push(Operation {
                    method: method.to_uppercase(),
                    path: path.clone(),
                    body: body.cloned(),
                    takes: body.map(&validator),
                    answers: answers.collect(),
                });
            }
        }
        Self {
            problem: validator(&json!({"$ref": "#/components/schemas/Problem"})),
            document,
            operations,
            seen: Mutex::default(),
        }
    }

    /// The operation that a request is for.
    pub(crate) fn operation(&self, method: &str, path: &str) -> Option<&Operation> {
        let path = path.split('?').next().unwrap();
        let fits = |template: &str| {
            let (given, template) = (path.split('/'), template.split('/'));
            given.clone().count() == template.clone().count()
                && given
                    .zip(template)
                    .all(|(a, b)| a == b || b.starts_with('{'))
        };
        // `/v1/log.csv` is no name of something.
        let mut found = self.operations.iter();
        found.find(|it| it.method == method && fits(&it.path))
    }

    /// Status and body of an answer, which is one that the document has.
    pub(crate) fn check(&self, method: &str, path: &str, answer: &str) -> (u16, Value) {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let kind = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let kind = name.eq_ignore_ascii_case("content-type").then_some(value)?;
            kind.split(';').next()
        });
        let what = format!("{method} {path}: {answer}");
        let value: Value = serde_json::from_str(body).unwrap_or(Value::Null);
        let Some(operation) = self.operation(method, path) else {
            if path != "/v1/openapi.json" {
                assert!(status == 404 || status == 405, "{what}");
                assert_eq!(kind, Some("application/problem+json"), "{what}");
                valid(&self.problem, &value, &what);
            }
            return (status, value);
        };
        let range = format!("{}XX", status / 100);
        let answers = &operation.answers;
        let content = answers.get(&status.to_string()).or(answers.get(&range));
        let content = content.unwrap_or_else(|| panic!("not in the document: {what}"));
        match kind {
            None => assert!(content.is_empty() && body.is_empty(), "{what}"),
            Some(kind) => {
                let validator = content.get(kind);
                let validator = validator.unwrap_or_else(|| panic!("no such content: {what}"));
                let is_json = kind.ends_with("json");
                let value = if is_json { value.clone() } else { json!(body) };
                valid(validator, &value, &what);
            }
        }
        if status >= 400 {
            assert_eq!(value["status"], status, "{what}");
        }
        let seen = (operation.method.clone(), operation.path.clone(), status);
        self.seen.lock().unwrap().insert(seen);
        (status, value)
    }

    /// Whether the document allows a body.
    pub(crate) fn allows(&self, operation: &Operation, body: &Value) -> bool {
        operation.takes.as_ref().unwrap().is_valid(body)
    }

    /// Statuses that an operation has answered with.
    pub(crate) fn seen(&self, operation: &Operation) -> BTreeSet<u16> {
        let seen = self.seen.lock().unwrap();
        let seen = seen
            .iter()
            .filter(|(method, path, _)| *method == operation.method && *path == operation.path);
        seen.map(|(_, _, status)| *status).collect()
    }

    /// Statuses of success that the document has for an operation.
    pub(crate) fn successes(&self, operation: &Operation) -> BTreeSet<u16> {
        let statuses = operation.answers.keys().filter_map(|it| it.parse().ok());
        statuses.filter(|it| (200..300).contains(it)).collect()
    }
}

fn valid(validator: &Validator, value: &Value, what: &str) {
    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?} in {what}");
}

/// A field that the document does not have is a fault here, although clients pass over it.
fn forbid_others(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("properties").is_some_and(Value::is_object) {
                let others = fields.entry("additionalProperties");
                others.or_insert(Value::Bool(false));
            }
            fields.values_mut().for_each(forbid_others);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_others),
        _ => {}
    }
}
