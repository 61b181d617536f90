//! What tests of leaks look for: secrets in every form in which they might be told.

use std::collections::BTreeMap;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

/// What is looked for, in the forms in which it might be found.
#[derive(Default)]
pub(crate) struct Needles {
    forms: Vec<(String, String)>,
}

impl Needles {
    /// Looks for a secret; `what` says which one, when it is found.
    pub(crate) fn add(&mut self, what: &str, secret: &[u8]) {
        let mut forms = vec![
            hex(secret),
            inner(&STANDARD.encode(secret)),
            inner(&STANDARD_NO_PAD.encode(secret)),
            inner(&URL_SAFE_NO_PAD.encode(secret)),
            // As the bytes are shown by a derived `Debug`.
            secret
                .iter()
                .take(16)
                .map(u8::to_string)
                .collect::<Vec<_>>()
                .join(", "),
            secret
                .iter()
                .take(16)
                .map(u8::to_string)
                .collect::<Vec<_>>()
                .join(","),
        ];
        if let Ok(text) = str::from_utf8(secret) {
            forms.push(text.to_owned());
            // Cut off, as some messages do with long texts.
            forms.push(text.chars().take(24).collect());
        }
        let forms = forms.into_iter().filter(|form| form.len() >= 8);
        self.forms.extend(forms.map(|form| (what.to_owned(), form)));
    }

    /// How many forms are looked for.
    pub(crate) fn len(&self) -> usize {
        self.forms.len()
    }

    /// What is found in a text: which secret, and around where.
    pub(crate) fn find(&self, place: &str, text: &str) -> Vec<String> {
        let found = |(what, form): &(String, String)| {
            let at = text.find(form.as_str())?;
            let begin = text.floor_char_boundary(at.saturating_sub(160));
            let end = text.ceil_char_boundary((at + form.len() + 40).min(text.len()));
            Some(format!("{what} in {place}: …{}…", &text[begin..end]))
        };
        self.forms.iter().filter_map(found).collect()
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Without the last group, which depends on what follows.
fn inner(base64: &str) -> String {
    let whole = (base64.len() / 4 * 4).saturating_sub(4);
    base64.chars().take(whole).collect()
}

/// Texts that are not values of keys but must not be told either.
#[derive(Default)]
pub(crate) struct Canaries {
    pub(crate) made: BTreeMap<String, String>,
}

impl Canaries {
    /// A new one; it is looked for under this name.
    pub(crate) fn make(&mut self, what: &str) -> String {
        let canary = format!(
            "cAnArY{}xQ7zK9wE2rT5{}",
            what.replace(' ', ""),
            self.made.len()
        );
        self.made.insert(what.to_owned(), canary.clone());
        canary
    }
}
