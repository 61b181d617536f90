//! `SecretVault`: a store of secrets, encrypted under a key ring of its own.
#![allow(
    unreachable_pub,
    reason = "the schema derive makes a private twin of each struct"
)]
#![allow(
    clippy::duplicated_attributes,
    reason = "columns are alike but for their names"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Restart, Rotation, ValueFrom, WorkloadRef};

/// A store of secrets with versions, encrypted under a key ring of its own. Claviger makes the
/// secrets declared here or imports them, turns them with an overlap, keeps their history, and
/// writes the Kubernetes Secrets that pods read.
///
/// No value ever appears in this resource. What stands in the namespace besides the Secrets of
/// `sync` is ciphertext.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "claviger.dev",
    version = "v1alpha1",
    kind = "SecretVault",
    plural = "secretvaults",
    shortname = "svault",
    category = "claviger",
    namespaced,
    status = "SecretVaultStatus",
    derive = "PartialEq",
    doc = "A store of secrets with versions, encrypted under a key ring of its own: made or imported, turned with an overlap, kept with their history, and written into the Kubernetes Secrets that pods read. No value ever appears here. A deletion waits while secrets live (see spec.deletionPolicy). Its name: lower-case letters, digits and single dashes, beginning with a letter, at most 50 characters.",
    validation = Rule::new("self.metadata.name.size() <= 50").message("the name of a SecretVault has at most 50 characters: those of its secrets' objects are made from it. Choose a shorter metadata.name"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && !self.metadata.name.contains('--')").message("the name of a SecretVault begins with a lower-case letter and holds lower-case letters, digits and single dashes, none at its end: it becomes part of a host name. Choose another metadata.name"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Secrets",
        type_ = "integer",
        json_path = ".status.secrets.live"
    ),
    printcolumn(
        name = "Ring",
        type_ = "integer",
        json_path = ".status.keyRing.current"
    ),
    printcolumn(
        name = "Ring-Age",
        type_ = "date",
        json_path = ".status.keyRing.rotatedAt"
    ),
    printcolumn(
        name = "Re-wrapped",
        type_ = "string",
        json_path = ".status.keyRing.rewrapped"
    ),
    printcolumn(
        name = "Next-Turn",
        type_ = "string",
        json_path = ".status.keyRing.nextAt",
        priority = "1"
    ),
    printcolumn(
        name = "Root-Key",
        type_ = "string",
        json_path = ".status.keyRing.rootKey",
        priority = "1"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
// What an apiserver spends on a rule is bounded, by estimate when the definition is installed and by
// count at every write (1,000,000 a rule, 10,000,000 in all), hence `in` where a comparison of all
// with all would do, and the 200 below: an exact double is refused by the list's own key, one that
// differs in case by the rule, two among more than 200 names with capitals by a condition.
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(oldSelf.?softDelete.?purgeProtection.orValue(false) == true) || (self.?softDelete.?purgeProtection.orValue(false) == true)").message("softDelete.purgeProtection cannot be taken back, nor can softDelete be left out once it is true: that is what it promises. Put purgeProtection: true back"),
    validation = Rule::new("!(oldSelf.?softDelete.?purgeProtection.orValue(false) == true) || !has(self.softDelete) || (has(self.softDelete.retention) && !self.softDelete.retention.matches('^([0-9]{1,9}(h|m|s))+$')) || (has(self.softDelete.retention) ? duration(self.softDelete.retention) : duration('2160h')) >= (has(oldSelf.softDelete.retention) ? duration(oldSelf.softDelete.retention) : duration('2160h'))").message("softDelete.retention cannot be shortened under purgeProtection (left out, it is 2160h): what was deleted would be purged early. Only lengthen it"),
    validation = Rule::new("oldSelf.?shred.orValue(false) != true || self.?shred.orValue(false) == true").message("shred cannot be taken back: the key ring is gone. Put shred: true back, or delete this SecretVault and make another"),
    validation = Rule::new("!has(oldSelf.keyRing) || !has(oldSelf.keyRing.shredVersions) || (has(self.keyRing) && has(self.keyRing.shredVersions) && oldSelf.keyRing.shredVersions.all(version, version in self.keyRing.shredVersions))").message("keyRing.shredVersions can only grow: a ring version that was shredded does not come back. Leave those in the list that are there"),
    validation = Rule::new("!(self.?softDelete.?purgeProtection.orValue(false) == true) || self.?shred.orValue(false) != true").message("shred is not for a vault with softDelete.purgeProtection: nothing in it may be destroyed before its retention is over. Leave shred out"),
    validation = Rule::new("!(self.?softDelete.?purgeProtection.orValue(false) == true) || self.?keyRing.?shredVersions.orValue([]).size() == 0").message("keyRing.shredVersions is not for a vault with softDelete.purgeProtection: nothing in it may be destroyed before its retention is over. Leave one of the two out"),
    validation = Rule::new("!(self.?softDelete.?purgeProtection.orValue(false) == true) || self.?deletionPolicy.orValue('Protect') != 'Delete'").message("deletionPolicy: Delete is not for a vault with softDelete.purgeProtection: use Protect, or Retain"),
    validation = Rule::new("!has(self.secrets) || [self.secrets.map(secret, secret.name)].all(names, [names.filter(name, name != name.lowerAscii()).map(name, name.lowerAscii())].all(folded, folded.all(name, !(name in names)) && (folded.size() > 200 || folded.all(name, folded.exists_one(other, other == name)))))").message("two secrets have the same name: names are compared without case. Declare each once"),
    validation = Rule::new("!has(self.sync) || self.sync.all(item, self.sync.exists_one(other, other.target.name == item.target.name))").message("sync names the same target twice: list each Secret once, with all its data"),
    validation = Rule::new("!has(self.sync) || !has(self.secrets) || [self.sync.filter(item, !has(item.creationPolicy) || item.creationPolicy == 'Owner').map(item, item.target.name)].all(owned, self.secrets.all(secret, !has(secret.valueFrom) || !(secret.valueFrom.secretKeyRef.name in owned)))").message("a secret takes its value (valueFrom) from a Secret that sync writes: name another source, or another target")
)]
pub struct SecretVaultSpec {
    /// The keys under which every secret's own key is wrapped. Turning the ring makes another one
    /// and re-wraps; no secret changes by it. Left out: the ring never turns by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_ring: Option<KeyRing>,

    /// What becomes of a secret that is taken off the list or deleted through the API. It is always
    /// kept for a while and can be recovered: by declaring it again, or by the annotation
    /// `claviger.dev/recover-secrets: <secret>@<time>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_delete: Option<SoftDelete>,

    /// The secrets that this manifest makes or imports, at most 500. Others can be made through the
    /// API. One that is taken off the list is deleted softly (see `softDelete`). Names are compared
    /// without case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub secrets: Option<Vec<DeclaredSecret>>,

    /// Kubernetes Secrets of this namespace that are kept filled from the vault, at most 100. A
    /// Secret that is taken off the list is removed, or, merged into another's, its entries are.
    /// Who writes this field must be allowed to create and patch Secrets there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub sync: Option<Vec<Sync>>,

    /// What a deletion of this resource does. `Protect` (what happens when left out): it waits
    /// while the vault has secrets that live or can be recovered, and a condition says so.
    /// `Retain`: the ciphertext and the Secrets of `sync` stay, no longer managed; a SecretVault of
    /// the same name takes them up again. `Delete`: everything goes at once, for good. A namespace
    /// that is being deleted is not held up by any of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<VaultDeletionPolicy>,

    /// `true` destroys the whole key ring at once: nothing in the vault can be read ever again, nor
    /// from a backup of the cluster without its ring. Cannot be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shred: Option<bool>,

    /// `true` leaves everything of this vault as it is: nothing is made, turned, re-wrapped,
    /// synchronised or purged. What is to be shredded is shredded nevertheless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// The keys under which every secret's own key is wrapped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct KeyRing {
    /// When the ring turns. The annotation `claviger.dev/rotate-at: <time>` turns it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RingRotation>,
    /// Versions of the ring to destroy at once, by number: everything that is still wrapped under
    /// them can never be read again. Can only grow. Not with `softDelete.purgeProtection`. Ring
    /// versions under which nothing remains after a turn are destroyed without being listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(validation = Rule::new("self.all(version, version >= 1 && version <= 4294967295)").message("ring versions are counted from 1: list those of status.keyRing.versions"))]
    pub shred_versions: Option<Vec<i64>>,
}

/// When a key ring turns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct RingRotation {
    /// How long a version of the ring is current before the next one takes its place, as in
    /// `2160h`; at least `10s`. A turn comes up to a tenth earlier. Every secret's key is then
    /// re-wrapped in the background, and the version before destroyed once nothing remains under
    /// it. Left out: the ring turns only when asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^([0-9]{1,9}(h|m|s))+$')").message("write a duration as in 2160h, 90m or 30s. Days are not a unit: 90 days are 2160h"),
        validation = Rule::new("!self.matches('^([0-9]{1,9}(h|m|s))+$') || (duration(self) >= duration('10s') && duration(self) <= duration('87600h'))").message("keyRing.rotation.interval must be between 10s and 87600h (ten years)")
    )]
    pub interval: Option<String>,
    /// Raise it to turn the ring now. Lowering it, as a reverted commit does, has no effect; nor
    /// has the value that the resource is created with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub generation: Option<i64>,
}

/// What becomes of a deleted secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct SoftDelete {
    /// How long a deleted secret can be recovered before it is purged, as in `720h`; between `10s`
    /// and `87600h`. Left out: 2160 h (90 days). Cannot be shortened under `purgeProtection`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^([0-9]{1,9}(h|m|s))+$')").message("write a duration as in 2160h, 90m or 30s. Days are not a unit: 90 days are 2160h"),
        validation = Rule::new("!self.matches('^([0-9]{1,9}(h|m|s))+$') || (duration(self) >= duration('10s') && duration(self) <= duration('87600h'))").message("softDelete.retention must be between 10s and 87600h (ten years)")
    )]
    pub retention: Option<String>,
    /// `true`: nobody purges a deleted secret before its retention is over, destroys a version of
    /// the ring, or deletes the vault with what is in it. Once true it stays so, for a later vault of this name too as long
    /// as the ring is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purge_protection: Option<bool>,
}

/// A secret that the manifest makes or imports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.generate) != has(self.valueFrom)").message("say where the value comes from by exactly one of generate and valueFrom (generate: {} makes 32 letters and digits)"),
    validation = Rule::new("!has(self.valueFrom) || !has(self.rotation) || !has(self.rotation.interval)").message("rotation.interval is not for a secret with valueFrom: it turns when its source changes. Leave out one of the two"),
    validation = Rule::new("!has(self.valueFrom) || !has(self.rotation) || !has(self.rotation.generation)").message("rotation.generation is not for a secret with valueFrom: change the value in the source instead"),
    validation = Rule::new("!has(self.generate) || !has(self.generate.tls) || !has(self.rotation) || !has(self.rotation.interval) || !self.rotation.interval.matches('^([0-9]{1,9}(h|m|s))+$') || (has(self.generate.tls.validity) && !self.generate.tls.validity.matches('^([0-9]{1,9}(h|m|s))+$')) || duration(self.rotation.interval) < (has(self.generate.tls.validity) ? duration(self.generate.tls.validity) : duration('8760h'))").message("rotation.interval must be shorter than tls.validity (8760h when left out): the certificate would expire before the next one takes its place"),
    validation = Rule::new("!has(self.notBefore) || !has(self.expires) || self.notBefore < self.expires").message("notBefore must lie before expires")
)]
pub struct DeclaredSecret {
    /// Its name: letters, digits and `-`, at most 127; compared without case.
    #[schemars(length(min = 1, max = 127))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Za-z-]+$')").message("not a name that a secret of a vault can have: letters, digits and '-', at most 127"))]
    pub name: String,

    /// Have the value made: of letters (`{}` makes 32 letters and digits), or as a key pair (`tls` or
    /// `ssh`). Changing how does not change the value there is: it holds from the next turn on. Only an
    /// imported value is replaced at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generate: Option<Generate>,

    /// Bring your own value. The secret follows its source: a changed value there is a new version,
    /// with overlap. A value is synced only while it is imported from where it came from: when another
    /// source, or `generate`, takes its place, it is not handed out as the previous one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,

    /// When and how the secret turns; without it never by itself. The version before stays enabled
    /// for the overlap, and `sync` and templates can name it. With `valueFrom` neither `interval`
    /// nor `generation`. The annotations `claviger.dev/rotate-secrets` and
    /// `claviger.dev/revoke-secrets` (`<secret>@<time>`, several with commas) turn it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,

    /// How much of the history is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,

    /// The media type of the value, as in `text/plain`; for whoever reads it through the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^[ -~]+$')").message("contentType may hold printable ASCII only, as in text/plain"))]
    pub content_type: Option<String>,

    /// Names and values of your own, at most 15, each of at most 256 characters; not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 15, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    #[x_kube(validation = Rule::new("self.all(name, name.size() >= 1 && name.size() <= 256)").message("the name of a tag has 1 to 256 characters"))]
    pub tags: Option<BTreeMap<String, String>>,

    /// Before this time (RFC 3339) the secret cannot be read through the API, and is not
    /// synchronised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,

    /// From this time on (RFC 3339) the secret cannot be read through the API; what is synchronised
    /// stays, and a condition says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Time>,
}

/// How a value is made: letters of an alphabet (the same as `{}`: 32 letters and digits), or a key
/// pair.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.tls) || !has(self.ssh)").message("generate either tls or ssh, not both: declare two secrets"),
    validation = Rule::new("(!has(self.tls) && !has(self.ssh)) || (!has(self.alphabet) && !has(self.length) && !has(self.minEntropyBits))").message("alphabet, length and minEntropyBits are not for a key pair: leave them out beside tls and ssh"),
    validation = Rule::new("!has(self.alphabet) || !(self.alphabet in ['Identifiable', 'Uuid']) || (!has(self.length) && !has(self.minEntropyBits))").message("length and minEntropyBits are not for Identifiable (238 random bits) and Uuid (122): their form is fixed. Leave them out, or choose another alphabet"),
    validation = Rule::new("!has(self.alphabet) || self.alphabet != 'Base64Url' || !has(self.length) || self.length % 4 != 1").message("no base64 text has a length of one more than a multiple of four: take one more or one less (43 characters hold 32 bytes)"),
    validation = Rule::new("has(self.tls) || has(self.ssh) || (has(self.alphabet) ? self.alphabet : 'Alphanumeric') in ['Identifiable', 'Uuid'] || [has(self.length) ? self.length : {'Alphanumeric': 32, 'AlphanumericSymbols': 32, 'Base64Url': 43, 'Hex': 32, 'LowerAlphanumeric': 32, 'Numeric': 40}[(has(self.alphabet) ? self.alphabet : 'Alphanumeric')]].all(length, ((has(self.alphabet) ? self.alphabet : 'Alphanumeric') == 'Base64Url' ? (length / 4 * 3 + length % 4 * 3 / 4) * 8000 : ((has(self.alphabet) ? self.alphabet : 'Alphanumeric') == 'AlphanumericSymbols' ? length * 6044 - 180 : length * {'Alphanumeric': 5954, 'Hex': 4000, 'LowerAlphanumeric': 5169, 'Numeric': 3321}[(has(self.alphabet) ? self.alphabet : 'Alphanumeric')])) >= (has(self.minEntropyBits) ? self.minEntropyBits : 128) * 1000)").message("too easily guessed: length times the bits of a character must reach minEntropyBits (128 when left out). Raise length: 22 characters of Alphanumeric, AlphanumericSymbols or Base64Url reach 128 bits, 25 of LowerAlphanumeric, 32 of Hex, 39 of Numeric")
)]
#[schemars(description = "")]
pub struct Generate {
    /// What the value is made of; `Alphanumeric` when left out. `Alphanumeric`: letters and digits.
    /// `AlphanumericSymbols`: inside also `-`, `.`, `_` and `~`, which need no quoting. `Base64Url`:
    /// whole random bytes in base64url. `Hex`: 0-9 and a-f. `LowerAlphanumeric`: small letters and
    /// digits. `Numeric`: digits. `Identifiable`: `clv_` and 46 characters with a checksum, which
    /// scanners recognise. `Uuid`: a random UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alphabet: Option<Alphabet>,
    /// How many characters; 32 when left out (43 of `Base64Url`, 40 of `Numeric`). Not for
    /// `Identifiable` and `Uuid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 4, max = 1024))]
    pub length: Option<i64>,
    /// How hard to guess the value has to be, in bits: a manifest whose length and alphabet fall
    /// short of it is refused. 128 when left out; say less where something takes only short values,
    /// such as a PIN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 4096))]
    pub min_entropy_bits: Option<i64>,
    /// A P-256 key and a certificate that it signs itself, in one PEM text; `sync` hands the parts
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// An Ed25519 key pair in OpenSSH's format; `sync` hands the parts out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<Ssh>,
}

/// What values are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum Alphabet {
    /// Letters and digits.
    Alphanumeric,
    /// Letters, digits and `-._~`.
    AlphanumericSymbols,
    /// Whole random bytes.
    Base64Url,
    /// 0-9 and a-f.
    Hex,
    /// A text that scanners recognise.
    Identifiable,
    /// Small letters and digits.
    LowerAlphanumeric,
    /// Digits.
    Numeric,
    /// A random UUID.
    Uuid,
}

/// A key and a certificate that it signs itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.commonName) || (has(self.dnsNames) && self.dnsNames.size() > 0)").message("a certificate needs a name: write tls.dnsNames (what clients check), or tls.commonName, or both"),
    validation = Rule::new("!has(self.commonName) || (has(self.dnsNames) && self.dnsNames.size() > 0) || self.commonName.matches('^([*][.])?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message("tls.commonName alone must be a host name, because clients check it; write tls.dnsNames, and the common name may be any text")
)]
#[schemars(description = "")]
pub struct Tls {
    /// The subject's common name. Left out: the first of `dnsNames`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[ -~]+$')").message("tls.commonName may hold printable ASCII only"))]
    pub common_name: Option<String>,
    /// The host names that the certificate is for, at most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^([*][.])?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'))").message("tls.dnsNames holds host names: lower-case letters, digits, '-' and '.', with '*.' in front for all names below"))]
    pub dns_names: Option<Vec<String>>,
    /// How long the certificate is valid, as in `2160h`; between `1h` and `87600h`. Left out: 8760 h
    /// (a year). `rotation.interval` must be shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^([0-9]{1,9}(h|m|s))+$')").message("write a duration as in 8760h or 90m. Days are not a unit: 90 days are 2160h"),
        validation = Rule::new("!self.matches('^([0-9]{1,9}(h|m|s))+$') || (duration(self) >= duration('1h') && duration(self) <= duration('87600h'))").message("tls.validity must be between 1h and 87600h (ten years)")
    )]
    pub validity: Option<String>,
}

/// An SSH key pair.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct Ssh {
    /// What stands behind the public key, as in `deploy@shop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^[ -~]+$')").message("ssh.comment may hold printable ASCII only, on one line"))]
    pub comment: Option<String>,
}

/// How much of a secret's history is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct Keep {
    /// How many versions are kept that are neither current nor in an overlap; 10 when left out. The
    /// oldest go first, for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub versions: Option<i64>,
    /// How old such a version may become, as in `2160h`; between `10s` and `87600h`. Left out: as
    /// old as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^([0-9]{1,9}(h|m|s))+$')").message("write a duration as in 2160h, 90m or 30s. Days are not a unit: 90 days are 2160h"),
        validation = Rule::new("!self.matches('^([0-9]{1,9}(h|m|s))+$') || (duration(self) >= duration('10s') && duration(self) <= duration('87600h'))").message("keep.age must be between 10s and 87600h (ten years)")
    )]
    pub age: Option<String>,
}

/// A Kubernetes Secret that is kept filled from the vault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.creationPolicy) || self.creationPolicy != 'Merge' || (!has(self.target.immutable) && !has(self.target.type))").message("target.type and target.immutable are not for creationPolicy: Merge: the Secret is somebody else's and stays as they made it. Leave them out, or use creationPolicy: Owner with a Secret of the vault's own"),
    validation = Rule::new("!has(self.target.type) || self.target.type != 'kubernetes.io/tls' || (self.data.exists(entry, entry.key == 'tls.crt') && self.data.exists(entry, entry.key == 'tls.key'))").message("a target of type kubernetes.io/tls needs both data keys: tls.crt (part: Certificate) and tls.key (part: PrivateKey)"),
    validation = Rule::new("!has(self.target.type) || self.target.type != 'kubernetes.io/ssh-auth' || self.data.exists(entry, entry.key == 'ssh-privatekey')").message("a target of type kubernetes.io/ssh-auth needs the data key ssh-privatekey (part: PrivateKey)"),
    validation = Rule::new("!has(self.target.type) || self.target.type != 'kubernetes.io/basic-auth' || self.data.exists(entry, entry.key == 'username' || entry.key == 'password')").message("a target of type kubernetes.io/basic-auth needs the data key username or password, as a rule both"),
    validation = Rule::new("!has(self.target.type) || self.target.type != 'kubernetes.io/dockerconfigjson' || self.data.exists(entry, entry.key == '.dockerconfigjson')").message("a target of type kubernetes.io/dockerconfigjson needs the data key .dockerconfigjson: write the document as a template")
)]
pub struct Sync {
    /// The Secret.
    pub target: SyncTarget,
    /// `Owner` (what happens when left out): the Secret is the vault's own; it is created, put back
    /// when somebody changes it, and removed with this item. `Merge`: the Secret is somebody else's
    /// and must exist; only the entries listed here are put into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_policy: Option<CreationPolicy>,
    /// What stands in it, at most 100 entries. Several changes make one write.
    #[schemars(length(min = 1, max = 100), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["key"]))]
    pub data: Vec<SyncEntry>,
    /// Workloads of this namespace to restart once the content has changed; several changes make
    /// one restart. First content restarts nobody. Who writes this field must be allowed to patch
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub restart: Option<Vec<WorkloadRef>>,
}

/// The Secret to fill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct SyncTarget {
    /// Its name. With `immutable`, what its names begin with.
    #[schemars(length(min = 1, max = 240))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("not a name that a Secret can have: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"),
        validation = Rule::new("!self.endsWith('-key-ring') && !self.matches('[.][0-9a-v]{32}-[0-9]{10}$')").message("names that end in -key-ring, or as those of a vault's versions do, are for vaults' own objects: choose another")
    )]
    pub name: String,
    /// Its type; `Opaque` when left out. Kubernetes lets nobody change the type of a Secret that
    /// exists: choose another name with another type. The types for applications have keys that
    /// must be there: `tls.crt` and `tls.key`, `ssh-privatekey`, `username` or `password`,
    /// `.dockerconfigjson`. Not with `creationPolicy: Merge`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<TargetType>,
    /// `true`: every content is a Secret of its own that nothing can change, named
    /// `<name>-<hash of the content>`; `status.sync` says which one is current. The others are
    /// removed once the overlap is over. Not with `creationPolicy: Merge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immutable: Option<bool>,
    /// Labels to put on it, at most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(
        validation = Rule::new("self.all(name, !name.startsWith('claviger.dev/'))").message("labels under claviger.dev/ are Claviger's own: choose another prefix"),
        validation = Rule::new("self.all(name, !name.split('/')[0].endsWith('kubernetes.io') && !name.split('/')[0].endsWith('k8s.io'))").message("labels under kubernetes.io and k8s.io are the cluster's own: choose another prefix"),
        validation = Rule::new("self.all(name, name.size() <= 317 && name.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$'))").message("not names that labels can have: letters, digits, '-', '_' and '.', with a prefix and a slash before it if you like")
    )]
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations to put on it, at most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 4096}))]
    #[x_kube(
        validation = Rule::new("self.all(name, !name.startsWith('claviger.dev/'))").message("annotations under claviger.dev/ are Claviger's own: choose another prefix"),
        validation = Rule::new("self.all(name, !name.split('/')[0].endsWith('kubernetes.io') && !name.split('/')[0].endsWith('k8s.io'))").message("annotations under kubernetes.io and k8s.io are the cluster's own: choose another prefix"),
        validation = Rule::new("self.all(name, name.size() <= 317 && name.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$'))").message("not names that annotations can have: letters, digits, '-', '_' and '.', with a prefix and a slash before it if you like")
    )]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// The types of Secret that applications read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum TargetType {
    /// Anything.
    Opaque,
    /// A user name and a password.
    #[serde(rename = "kubernetes.io/basic-auth")]
    BasicAuth,
    /// Credentials of image registries.
    #[serde(rename = "kubernetes.io/dockerconfigjson")]
    DockerConfigJson,
    /// An SSH key.
    #[serde(rename = "kubernetes.io/ssh-auth")]
    SshAuth,
    /// A certificate and its key.
    #[serde(rename = "kubernetes.io/tls")]
    Tls,
}

/// Whose the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum CreationPolicy {
    /// Somebody else's: entries are put into it.
    Merge,
    /// The vault's.
    Owner,
}

/// One entry of a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.secret) != has(self.template)").message("say what stands under the key by exactly one of secret and template"),
    validation = Rule::new("has(self.secret) || !has(self.version)").message("version goes with secret only: a template names versions itself, as in {{ previous['db-password'] }}"),
    validation = Rule::new("has(self.secret) || !has(self.part)").message("part goes with secret only: write the part of a key pair under a key of its own")
)]
pub struct SyncEntry {
    /// The data key.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._A-Za-z0-9]+$') && !self.startsWith('..') && self != '.'").message("not a key that a Secret can have: letters, digits, '-', '_' and '.'"))]
    pub key: String,
    /// The secret whose value stands under it: a declared one, or one made through the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9A-Za-z-]+$')").message("not a name that a secret of a vault can have: letters, digits and '-', at most 127"))]
    pub secret: Option<String>,
    /// Text with values put in, as in `postgres://app:{{ secrets['db-password'] | urlencode }}@db/app`;
    /// `previous` holds the versions before, while they are in overlap. Filters:
    /// b64encode, b64decode, json, urlencode, sha256, upper, lower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub template: Option<String>,
    /// Which version of `secret`: `Current` (what is taken when left out), or `Previous`, the one
    /// before; the entry is absent while there is none in overlap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<SyncVersion>,
    /// Which part of a generated key pair: `Value` (what is taken when left out) is all of it,
    /// `Certificate`, `PrivateKey` and `PublicKey` are what they say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
}

/// Which version of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum SyncVersion {
    /// The one in force.
    Current,
    /// The one before, while its overlap runs.
    Previous,
}

/// Which part of a generated key pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum Part {
    /// The certificate, as PEM.
    Certificate,
    /// The private key.
    PrivateKey,
    /// The public key.
    PublicKey,
    /// All of it.
    Value,
}

/// What a deletion of a vault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum VaultDeletionPolicy {
    /// Everything goes.
    Delete,
    /// It waits while secrets live or can be recovered.
    Protect,
    /// Everything stays, no longer managed.
    Retain,
}

/// What Claviger reports of a vault. It is derived and may be lost without harm: the truth stands in
/// the vault's own objects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretVaultStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: every declared secret has a version, every target of `sync` has what it should
    /// have, and everything in the vault opens. `Reconciling`: something is being brought about, a
    /// re-wrap for example. `Stalled`: nothing more will happen until somebody changes something;
    /// the message says what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The vault's own random id, which every ciphertext is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault_id: Option<String>,
    /// The key ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_ring: Option<KeyRingStatus>,
    /// How much is in the vault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<SecretCounts>,
    /// The declared secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub declared: Vec<DeclaredStatus>,
    /// The targets of `sync`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["target"]))]
    pub sync: Vec<SyncStatus>,
    /// Workloads that were restarted for this vault, and when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restarts: Vec<Restart>,
    /// What holds where the spec says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<VaultEffective>,
}

/// What is reported of a key ring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct KeyRingStatus {
    /// The version that wraps now.
    #[schemars(range(min = 0))]
    pub current: i64,
    /// The versions there are, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["version"]))]
    pub versions: Vec<RingVersionStatus>,
    /// While a re-wrap runs, how far it is, as in `4,120 of 10,000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrapped: Option<String>,
    /// Since when the current version wraps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<Time>,
    /// When the ring turns next by its schedule (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Time>,
    /// The id of the root key that wraps the ring; not a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_key: Option<String>,
}

/// One version of a key ring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RingVersionStatus {
    /// Its number, from 1.
    #[schemars(range(min = 1))]
    pub version: i64,
    /// Since when it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
    /// How many versions of secrets are wrapped under it.
    #[schemars(range(min = 0))]
    pub secrets: i64,
}

/// How much is in a vault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct SecretCounts {
    /// Secrets that live, declared or not.
    #[schemars(range(min = 0))]
    pub live: i64,
    /// Secrets that are deleted and can be recovered.
    #[schemars(range(min = 0))]
    pub deleted: i64,
    /// Versions of all of them.
    #[schemars(range(min = 0))]
    pub versions: i64,
    /// Versions that do not open: damaged, moved here from elsewhere, or wrapped under a key that is
    /// gone. A condition names the first.
    #[schemars(range(min = 0))]
    pub unreadable: i64,
}

/// What is reported of a declared secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeclaredStatus {
    /// Its name.
    pub name: String,
    /// The id of its current version, as the API shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Counts the values that it has had, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub generation: Option<i64>,
    /// Since when the current version exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minted_at: Option<Time>,
    /// When it turns next by its schedule (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Time>,
    /// When the version before ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_until: Option<Time>,
    /// `Pending`: there is no version yet. `Stable`: one version is in force. `Overlap`: the one
    /// before is too. `Failed`: something is in the way; the condition says what, and the last good
    /// version stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<DeclaredState>,
}

/// Where a declared secret stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum DeclaredState {
    /// Something is in the way.
    Failed,
    /// Two versions are in force.
    Overlap,
    /// No version yet.
    Pending,
    /// One version is in force.
    Stable,
}

/// What is reported of a target of `sync`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SyncStatus {
    /// The target's name, as declared.
    pub target: String,
    /// The Secret that holds the content now; with `immutable` its name carries a hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// When the content last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Time>,
    /// `Pending`: not written yet. `Synced`: it holds what it should. `Failed`: it could not be
    /// written or a template could not be filled in; the last good content stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<SyncState>,
    /// What is in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Where a target of `sync` stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum SyncState {
    /// It could not be written.
    Failed,
    /// Not written yet.
    Pending,
    /// It holds what it should.
    Synced,
}

/// What holds where the spec says nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct VaultEffective {
    /// How long a deleted secret can be recovered.
    pub retention: String,
    /// Whether nothing may be destroyed before that.
    pub purge_protection: bool,
    /// What a deletion of the resource does.
    pub deletion_policy: VaultDeletionPolicy,
}
