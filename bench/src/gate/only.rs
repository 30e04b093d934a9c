//! Which paths and steps are wanted: those whose name holds one of the words, or all without words.
#![forbid(unsafe_code)]

/// The words.
#[derive(Clone, Copy, Debug)]
pub struct Only<'a>(pub &'a [String]);

impl<'a> Only<'a> {
    /// Whether nothing was chosen.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether that path or step is among those that are wanted.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.is_all() || self.0.iter().any(|word| name.contains(word.as_str()))
    }

    /// Whether a step of that record may be: a word with the record's name, or part of a step's.
    #[must_use]
    pub fn may_want_step_of(&self, record: &str) -> bool {
        let in_record = |word: &String| word.contains(record) || !word.contains('/');
        self.is_all() || self.0.iter().any(in_record)
    }

    /// The first word that chooses none of these names, and names none of these records.
    #[must_use]
    pub fn unknown(&self, names: &[&str], records: &[&str]) -> Option<&'a str> {
        let chooses = |word: &str| {
            let of_record = |record: &&str| word.contains(*record) || record.contains(word);
            names.iter().any(|name| name.contains(word)) || records.iter().any(of_record)
        };
        let mut words = self.0.iter().map(String::as_str);
        words.find(|word| word.is_empty() || !chooses(word))
    }
}

#[cfg(test)]
mod tests {
    use super::Only;

    #[test]
    fn a_word_that_chooses_nothing_is_found() {
        let words = ["ring", "torch-new/train", "nothing"].map(str::to_owned);
        let (names, records) = (["ring/push", "torch/train"], ["torch", "torch-new"]);
        let only = Only(&words);
        assert_eq!(only.unknown(&names, &records), Some("nothing"));
        assert_eq!(Only(&words[..2]).unknown(&names, &records), None);
        assert!(only.wants("ring/push") && !only.wants("torch/train"));
        // A record that has no budgets yet.
        assert!(Only(&words[1..2]).may_want_step_of("torch-new"));
        assert!(!Only(&words[1..2]).may_want_step_of("other"));
        assert!(Only(&[]).wants("all") && Only(&[]).may_want_step_of("all"));
    }
}
