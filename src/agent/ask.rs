//! What a caller of managed identity asks for.

use std::borrow::Cow;

use snafu::{OptionExt, Snafu, ensure};

/// The longest resource.
const LONGEST: usize = 256;
/// How callers name another identity than the only one, in either form.
const OTHERS: [&str; 6] = [
    "client_id",
    "mi_res_id",
    "msi_res_id",
    "object_id",
    "principal_id",
    "resource_id",
];

/// A token for one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The resource: a scope without `/.default`.
    pub resource: String,
}

/// The request cannot be answered.
#[derive(Debug, PartialEq, Eq, Snafu)]
pub enum Fault {
    /// There is none.
    #[snafu(display(
        "Name the resource that the token is for, as in ?resource=https://vault.azure.net."
    ))]
    NoResource,
    /// It is no resource.
    #[snafu(display("The resource is not an address of at most {LONGEST} characters."))]
    Resource,
    /// The agent has one identity.
    #[snafu(display(
        "Identity not found: this agent is {own}. Leave {field} out, or set it to that."
    ))]
    Other {
        /// The agent's.
        own: String,
        /// How another was named.
        field: &'static str,
    },
}

impl Ask {
    /// Reads a query.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn parse(query: &str, own: &str) -> Result<Self, Fault> {
        let fields: Vec<(Cow<'_, str>, Cow<'_, str>)> =
            form_urlencoded::parse(query.as_bytes()).collect();
        for field in OTHERS {
            let other = fields
                .iter()
                .any(|(name, value)| name == field && !value.is_empty() && value != own);
            ensure!(!other, OtherSnafu { own, field });
        }
        let mut resources = fields.iter().filter(|(name, _)| name == "resource");
        let (_, resource) = resources.next().context(NoResourceSnafu)?;
        let fit = |c: char| c.is_ascii_graphic() && !"\"<>\\^`{|}".contains(c);
        ensure!(
            resources.next().is_none()
                && (1..=LONGEST).contains(&resource.len())
                && resource.chars().all(fit),
            ResourceSnafu
        );
        Ok(Self {
            resource: resource.clone().into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: &str = "system:serviceaccount:shop:web";

    #[test]
    fn both_spellings_of_a_resource_are_read() {
        for query in [
            "api-version=2019-08-01&resource=https://vault.azure.net",
            "resource=https%3A%2F%2Fvault.azure.net&api-version=2018-02-01",
            "resource=https://vault.azure.net&client_id=",
            "resource=https://vault.azure.net&client_id=system:serviceaccount:shop:web",
        ] {
            let ask = Ask::parse(query, OWN).unwrap();
            assert_eq!(ask.resource, "https://vault.azure.net");
        }
    }

    #[test]
    fn another_identity_or_no_resource_is_refused_and_told_why() {
        for (query, word) in [
            ("", "Name the resource"),
            ("api-version=2019-08-01", "Name the resource"),
            ("resource=", "not an address"),
            ("resource=a&resource=b", "not an address"),
            ("resource=a%0Ab", "not an address"),
            ("resource=a&client_id=other", "Leave client_id out"),
            (
                "resource=a&mi_res_id=/subscriptions/1",
                "Leave mi_res_id out",
            ),
            ("resource=a&object_id=1", "Leave object_id out"),
        ] {
            let fault = Ask::parse(query, OWN).unwrap_err().to_string();
            assert!(fault.contains(word), "{query}: {fault}");
        }
        let long = format!("resource={}", "a".repeat(LONGEST + 1));
        assert_eq!(Ask::parse(&long, OWN), Err(Fault::Resource));
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(query in "(resource=|client_id=|object_id=|&|%20|%0a|[a-z%0-9=&:/]){0,8}") {
            if let Ok(ask) = Ask::parse(&query, OWN) {
                // What is asked for was said once, and nothing else of anybody.
                let said: Vec<_> = form_urlencoded::parse(query.as_bytes())
                    .filter(|(name, _)| name == "resource").collect();
                prop_assert_eq!(said.len(), 1);
                prop_assert_eq!(&*said[0].1, &*ask.resource);
                prop_assert!(ask.resource.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
