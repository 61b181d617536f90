//! Writing entries as the plan wants them, and reading values back.

use std::sync::Arc;

use jiff::Timestamp;
use snafu::ResultExt;
use zeroize::Zeroizing;

use super::{
    cache::{self, Held},
    ring::{self, OpenRing},
};
use crate::{
    api::convert::vault::{DeclaredSecret, Making},
    controllers::{
        context::Context,
        error::{Error, ReadEntrySnafu, WriteEntrySnafu},
        naming::Name,
    },
    domain::{
        key::KeyMaterial,
        vault::{
            attributes::Attributes,
            envelope::{DataKey, Envelope},
            generate,
            history::Entry,
            name::{NameHash, object_name},
            plan::Action,
        },
    },
    k8s::vault::{Found, Metadata},
    key_pair,
};

/// How many names that others have taken are passed over in one look.
const MOST_PASSED_OVER: u32 = 32;

/// Where entries of one vault are written.
pub struct Writer<'a> {
    /// What every look has at hand.
    pub context: &'a Context,
    /// The vault.
    pub name: &'a Name,
    /// Its key ring.
    pub open: Arc<OpenRing>,
    /// The time.
    pub now: Timestamp,
}

/// What came of an action.
pub enum Performed {
    /// It was carried out.
    Done,
    /// Somebody else has written since it was decided; another look decides anew.
    Overtaken,
    /// The manifest asks for a value that cannot be made, and why it cannot.
    Unmakeable(String),
}

impl Writer<'_> {
    /// Performs one action. `supplied` is the value of the source that the secret follows.
    ///
    /// # Errors
    /// The write that failed.
    pub async fn perform(
        &self,
        hash: NameHash,
        action: &Action,
        declared: Option<&DeclaredSecret>,
        supplied: Option<&KeyMaterial>,
    ) -> Result<Performed, Error> {
        match action {
            Action::Create {
                sequence,
                attributes,
            } => {
                let value = match value(declared, supplied, self.now) {
                    Ok(value) => value,
                    Err(why) => return Ok(Performed::Unmakeable(why)),
                };
                return self.create(hash, *sequence, attributes, Some(&value)).await;
            }
            Action::Mark {
                sequence,
                attributes,
            } => return self.create(hash, *sequence, attributes, None).await,
            Action::Amend {
                sequence,
                attributes,
            } => {
                let Some(held) = self.decided_on(hash, *sequence, action) else {
                    return Ok(Performed::Overtaken);
                };
                self.amend(hash, *sequence, held, attributes).await?;
            }
            Action::Remove { sequence, .. } => {
                let Some(held) = self.decided_on(hash, *sequence, action) else {
                    return Ok(Performed::Overtaken);
                };
                self.remove(hash, *sequence, held).await?;
            }
        }
        Ok(Performed::Done)
    }

    /// The entry that an action is about, if it is still what the action was decided on.
    fn decided_on(&self, hash: NameHash, sequence: u32, action: &Action) -> Option<Held> {
        let mut state = self.context.vaults.lock();
        let (entry, held) = state.entry(self.name, &self.open, hash, sequence)?;
        action.stands(Some(&entry)).then_some(held)
    }

    /// Makes an entry. That its number is taken by another entry means that somebody else was
    /// faster: another look sees what they wrote, and decides anew. A number whose name somebody has
    /// given to a Secret of their own is passed over.
    async fn create(
        &self,
        hash: NameHash,
        sequence: u32,
        attributes: &Attributes,
        value: Option<&KeyMaterial>,
    ) -> Result<Performed, Error> {
        let mut sequence = sequence;
        let last = sequence.saturating_add(MOST_PASSED_OVER);
        loop {
            let object = object_name(&self.name.name, hash, sequence);
            let made = self.post(&object, sequence, attributes, value).await;
            let taken =
                matches!(&made, Err(kube::Error::Api(status)) if status.is_already_exists());
            if taken {
                let found = self
                    .context
                    .vault_objects
                    .find_entry(&self.name.namespace, &object)
                    .await
                    .context(ReadEntrySnafu { object: &object })?;
                match found {
                    Found::Foreign if sequence < last => {
                        sequence = sequence.saturating_add(1);
                        continue;
                    }
                    Found::Foreign => {
                        return Ok(Performed::Unmakeable(format!(
                            "others have taken the names of its next objects, Secret/{object} and those before; remove these"
                        )));
                    }
                    Found::Ours(metadata) => {
                        let mut state = self.context.vaults.lock();
                        state.observe_entry(self.name, &object, metadata);
                    }
                    Found::Nothing => {}
                }
            }
            if let Some(metadata) = made.context(WriteEntrySnafu { object: &object })? {
                self.context
                    .vaults
                    .lock()
                    .observe_entry(self.name, &object, metadata);
            }
            return Ok(Performed::Done);
        }
    }

    async fn post(
        &self,
        object: &str,
        sequence: u32,
        attributes: &Attributes,
        value: Option<&KeyMaterial>,
    ) -> kube::Result<Option<Metadata>> {
        let Some(newest) = self.open.newest() else {
            return Ok(None);
        };
        let binding = cache::binding(&self.open, &attributes.name, sequence, attributes);
        let text = attributes.render();
        let (wrapped, payload) = match value {
            None => (None, None),
            Some(value) => {
                let key = DataKey::new(Zeroizing::new(ring::random()));
                let payload = key.seal(&binding, ring::random(), value.expose().as_bytes());
                (
                    Some(newest.wrap(&binding, &key, ring::random())),
                    Some(payload),
                )
            }
        };
        let envelope = Envelope {
            ring: newest.version(),
            mac: newest.mac(&binding, wrapped.as_ref(), &text),
            wrapped,
        };
        self.context
            .vault_objects
            .create_entry(
                &self.name.namespace,
                &self.name.name,
                object,
                &text,
                &envelope.to_string(),
                payload,
            )
            .await
            .map(Some)
    }

    async fn amend(
        &self,
        hash: NameHash,
        sequence: u32,
        held: Held,
        attributes: &Attributes,
    ) -> Result<(), Error> {
        let Ok(envelope) = held.metadata.envelope.parse::<Envelope>() else {
            return Ok(());
        };
        // The version of the ring stays: putting it under another one is the re-wrap's business.
        let Some(key) = self.open.key(envelope.ring) else {
            return Ok(());
        };
        let binding = cache::binding(&self.open, &attributes.name, sequence, attributes);
        let text = attributes.render();
        let amended = Envelope {
            mac: key.mac(&binding, envelope.wrapped.as_ref(), &text),
            ..envelope
        };
        let object = object_name(&self.name.name, hash, sequence);
        let metadata = self
            .context
            .vault_objects
            .amend_entry(
                &self.name.namespace,
                &object,
                &held.metadata.version,
                Some(&text),
                &amended.to_string(),
            )
            .await
            .context(WriteEntrySnafu { object: &object })?;
        self.context
            .vaults
            .lock()
            .observe_entry(self.name, &object, metadata);
        Ok(())
    }

    async fn remove(&self, hash: NameHash, sequence: u32, held: Held) -> Result<(), Error> {
        let object = object_name(&self.name.name, hash, sequence);
        // What was decided on, not what may have come to stand there since a purge.
        let version = &held.metadata.version;
        self.context
            .vault_objects
            .delete_entry(&self.name.namespace, &object, Some(version))
            .await
            .context(WriteEntrySnafu { object: &object })?;
        self.context
            .vaults
            .lock()
            .removed_entry(self.name, &object, held.metadata);
        Ok(())
    }
}

fn value(
    declared: Option<&DeclaredSecret>,
    supplied: Option<&KeyMaterial>,
    now: Timestamp,
) -> Result<KeyMaterial, String> {
    let nothing = || "there is nothing to make a value from".to_owned();
    match &declared.ok_or_else(nothing)?.making {
        Making::From(_) => supplied.cloned().ok_or_else(nothing),
        Making::Random(recipe) => Ok(generate::generate(recipe, &mut |bytes: &mut [u8]| {
            getrandom::fill(bytes)
                .expect("the operating system's random source never fails once it is seeded");
        })),
        Making::Ssh(comment) => Ok(key_pair::ssh(comment, &Zeroizing::new(ring::random()))),
        Making::Tls {
            common_name,
            dns_names,
            validity,
        } => {
            key_pair::tls(common_name, dns_names, *validity, now).map_err(|error| error.to_string())
        }
    }
}

/// Opens the value of an entry; `None` when it does not open or is gone.
///
/// # Errors
/// The read that failed.
pub async fn open(
    context: &Context,
    name: &Name,
    ring: &OpenRing,
    hash: NameHash,
    sequence: u32,
) -> Result<Option<KeyMaterial>, Error> {
    let object = object_name(&name.name, hash, sequence);
    let Some((metadata, payload)) = context
        .vault_objects
        .entry(&name.namespace, &object)
        .await
        .context(ReadEntrySnafu { object: &object })?
    else {
        return Ok(None);
    };
    let (entry, metadata) = {
        let mut state = context.vaults.lock();
        state.observe_entry(name, &object, metadata);
        let history = state.history(name, ring, hash);
        let held = state.held(name, hash, sequence);
        (history.0.get(&sequence).cloned(), held)
    };
    let (Some(Entry::Authentic(attributes)), Some(held)) = (entry, metadata) else {
        return Ok(None);
    };
    let binding = cache::binding(ring, &attributes.name, sequence, &attributes);
    let opened = held
        .metadata
        .envelope
        .parse::<Envelope>()
        .ok()
        .and_then(|envelope| {
            let key = ring.key(envelope.ring)?;
            let data_key = key.unwrap(&binding, &envelope.wrapped?).ok()?;
            data_key.open(&binding, &payload).ok()
        });
    Ok(opened.and_then(|value| {
        let text = std::str::from_utf8(&value).ok()?;
        Some(KeyMaterial::new(text))
    }))
}
