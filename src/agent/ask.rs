//! What a caller of managed identity asks for.

use std::borrow::Cow;

use snafu::{OptionExt, Snafu, ensure};

/// The longest resource, and the longest name.
const LONGEST: usize = 256;
/// How callers name the identity that they want, in either form. A token's `oid` is the UID, which
/// is a client, too.
const CLIENTS: [&str; 3] = ["client_id", "object_id", "principal_id"];
/// How they name one by what there is none of here.
const OTHERS: [&str; 3] = ["mi_res_id", "msi_res_id", "resource_id"];

/// A token for one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The identity, as it is to be named to the server: it knows which names are its.
    pub client_id: String,
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
        let named = |field: &'static str| {
            let of = fields.iter().filter(move |(name, _)| name == field);
            of.map(|(_, value)| &**value)
                .filter(|value| !value.is_empty() && *value != own)
        };
        let fit = |c: char| c.is_ascii_graphic() && !"\"<>\\^`{|}".contains(c);
        for field in OTHERS {
            ensure!(named(field).next().is_none(), OtherSnafu { own, field });
        }
        let mut client_id = None;
        for field in CLIENTS {
            for value in named(field) {
                let well = value.len() <= LONGEST && value.chars().all(fit);
                let same = client_id.is_none_or(|other| other == value);
                ensure!(well && same, OtherSnafu { own, field });
                client_id = Some(value);
            }
        }
        let mut resources = fields.iter().filter(|(name, _)| name == "resource");
        let (_, resource) = resources.next().context(NoResourceSnafu)?;
        ensure!(
            resources.next().is_none()
                && (1..=LONGEST).contains(&resource.len())
                && resource.chars().all(fit),
            ResourceSnafu
        );
        Ok(Self {
            client_id: client_id.unwrap_or(own).to_owned(),
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
            assert_eq!(ask.client_id, OWN);
        }
    }

    #[test]
    fn whatever_the_server_may_know_the_identity_by_is_for_the_server_to_judge() {
        for (query, client_id) in [
            ("resource=a&client_id=shop/web", "shop/web"),
            ("resource=a&client_id=shop%2Fweb&object_id=", "shop/web"),
            (
                "resource=a&client_id=shop/web&object_id=shop/web",
                "shop/web",
            ),
            ("resource=a&object_id=0a7c-1", "0a7c-1"),
            ("resource=a&principal_id=0a7c-1", "0a7c-1"),
        ] {
            assert_eq!(Ask::parse(query, OWN).unwrap().client_id, client_id);
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
            ("resource=a&client_id=a&client_id=b", "Leave client_id out"),
            ("resource=a&client_id=a%0Ab", "Leave client_id out"),
            (
                "resource=a&mi_res_id=/subscriptions/1",
                "Leave mi_res_id out",
            ),
            ("resource=a&client_id=a&object_id=b", "Leave object_id out"),
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
