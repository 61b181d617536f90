"""Opens vault_envelope.json by the words of src/domain/vault/FORMAT.md, and nothing of Claviger.

Derives every byte again from the keys, nonces and names that the file gives; opens from the root
key down to the values; then changes, swaps and moves things and sees that none of it opens.
"""

import base64
import hashlib
import hmac
import json
import sys
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class Refused(Exception):
    pass


def lp(data):
    return len(data).to_bytes(2, "big") + data


def u32(number):
    return number.to_bytes(4, "big")


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64(data) != text:
        raise Refused("another spelling")
    return data


def derive(key, info):
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(key)


def mac(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def seal(key, nonce, aad, plain):
    return b"\x01" + nonce + AESGCM(key).encrypt(nonce, plain, aad)


def unseal(key, aad, sealed):
    if len(sealed) < 29 or sealed[0] != 1:
        raise Refused("not format version 1")
    try:
        return AESGCM(key).decrypt(sealed[1:13], sealed[13:], aad)
    except InvalidTag:
        raise Refused("tag") from None


def place(vault):
    """A vault: its id, namespace and name."""
    return (
        bytes.fromhex(vault["id"])
        + lp(vault["namespace"].encode())
        + lp(vault["name"].encode())
    )


def identity(vault, entry):
    return (
        place(vault)
        + lp(entry["secret"].lower().encode())
        + u32(entry["sequence"])
        + bytes.fromhex(entry["version"])
    )


def aad_payload(vault, entry):
    return lp(b"claviger payload v1") + identity(vault, entry)


def aad_data_key(vault, entry, ring):
    return lp(b"claviger data key v1") + identity(vault, entry) + u32(ring)


def aad_vault_key(vault, root_id, ring):
    label = b"claviger ring key v1" if ring else b"claviger index key v1"
    return lp(label) + place(vault) + u32(ring) + lp(root_id.encode())


def attributes_mac(ring_key, vault, entry, ring, wrapped, attributes):
    key = derive(ring_key, b"claviger attributes key v1" + bytes.fromhex(vault["id"]))
    data = lp(b"claviger attributes v1") + identity(vault, entry) + u32(ring)
    return mac(key, data + lp(wrapped) + u32(len(attributes)) + attributes)


def document_mac(index_key, vault, document):
    key = derive(index_key, b"claviger key ring v1" + bytes.fromhex(vault["id"]))
    return mac(key, document)


def digest(index_key, vault, context, value):
    key = derive(index_key, b"claviger digest v1" + bytes.fromhex(vault["id"]))
    return mac(key, lp(context.encode()) + value)[:16]


def root_key_id(key):
    full = hashlib.sha256(b"claviger root key id" + key).hexdigest()
    return "secret:" + full[:16]


def object_name(vault, entry):
    data = lp(b"claviger secret name v1") + bytes.fromhex(vault["id"])
    data += lp(entry["secret"].lower().encode())
    name = base64.b32hexencode(hashlib.sha256(data).digest()[:20]).decode().lower()
    return f"{vault['name']}.{name}-{entry['sequence']:010}"


def open_entry(root, vault, keys, entry):
    """From the root key to the value; None for a marker."""
    fields = entry["envelope"].split(".")
    if len(fields) != 4 or fields[0] != "v1" or str(int(fields[1])) != fields[1]:
        raise Refused("not an envelope")
    ring = int(fields[1])
    if ring not in keys:
        raise Refused("no such ring version")
    ring_key = unseal(root["key"], aad_vault_key(vault, root["id"], ring), keys[ring])
    wrapped = b"" if fields[2] == "-" else unb64(fields[2])
    if fields[2] != "-" and len(wrapped) != 61:
        raise Refused("not a wrapped key")
    attributes = entry["attributes"].encode()
    expected = attributes_mac(ring_key, vault, entry, ring, wrapped, attributes)
    if not hmac.compare_digest(expected, unb64(fields[3])):
        raise Refused("MAC")
    if not wrapped:
        if entry["payload"] is not None:
            raise Refused("a marker with a payload")
        return None
    data_key = unseal(ring_key, aad_data_key(vault, entry, ring), wrapped)
    if entry["payload"] is None:
        raise Refused("no payload")
    return unseal(data_key, aad_payload(vault, entry), bytes.fromhex(entry["payload"]))


class Tally:
    def __init__(self):
        self.derived = self.opened = self.refused = 0

    def same(self, what, ours, theirs):
        if ours != theirs:
            sys.exit(f"{what}: derived {ours!r}, the file has {theirs!r}")
        self.derived += 1

    def refuses(self, what, attempt):
        try:
            attempt()
        except (Refused, ValueError):
            self.refused += 1
        else:
            sys.exit(f"{what}: it opened")


def flips(data):
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            yield at, bytes(changed)


def check_vault(tally, vault):
    root = {"key": bytes.fromhex(vault["root"]["key"]), "id": vault["root"]["id"]}
    if root["id"].startswith("secret:"):
        tally.same("root key id", root_key_id(root["key"]), root["id"])

    index = vault["index"]
    index_key = bytes.fromhex(index["key"])
    keys, bare = {}, {}
    for version, key in [(0, index)] + [(key["version"], key) for key in vault["ring"]]:
        aad = aad_vault_key(vault, root["id"], version)
        plain, nonce = bytes.fromhex(key["key"]), bytes.fromhex(key["nonce"])
        wrapped = seal(root["key"], nonce, aad, plain)
        tally.same(f"ring key {version}", wrapped.hex(), key["wrapped"])
        tally.same(f"ring key {version} opened", unseal(root["key"], aad, wrapped), plain)
        keys[version], bare[version] = wrapped, plain
        for at, changed in flips(wrapped):
            tally.refuses(
                f"ring key {version}, byte {at}",
                lambda changed=changed, aad=aad: unseal(root["key"], aad, changed),
            )
        tally.refuses(
            f"ring key {version} under another number",
            lambda wrapped=wrapped, version=version: unseal(
                root["key"], aad_vault_key(vault, root["id"], version ^ 1), wrapped
            ),
        )
    del keys[0]

    document = vault["document"]
    expected = document_mac(index_key, vault, document["text"].encode())
    tally.same("ring document", expected.hex(), document["mac"])
    for known in vault["digests"]:
        ours = digest(index_key, vault, known["context"], bytes.fromhex(known["value"]))
        tally.same("digest", b64(ours), known["digest"])

    for entry in vault["entries"]:
        what = entry["about"]
        ring = entry["ring"]
        tally.same(f"{what}: object", object_name(vault, entry), entry["object"])
        wrapped = b""
        if entry["value"] is not None:
            value, data_key = bytes.fromhex(entry["value"]), bytes.fromhex(entry["dataKey"])
            payload = seal(
                data_key, bytes.fromhex(entry["payloadNonce"]), aad_payload(vault, entry), value
            )
            tally.same(f"{what}: payload", payload.hex(), entry["payload"])
            wrapped = seal(
                bare[ring],
                bytes.fromhex(entry["wrapNonce"]),
                aad_data_key(vault, entry, ring),
                data_key,
            )
        code = attributes_mac(
            bare[ring], vault, entry, ring, wrapped, entry["attributes"].encode()
        )
        text = f"v1.{ring}.{b64(wrapped) or '-'}.{b64(code)}"
        tally.same(f"{what}: envelope", text, entry["envelope"])
        opened = open_entry(root, vault, keys, entry)
        tally.same(f"{what}: value", opened and opened.hex() or "", entry["value"] or "")
        tally.opened += 1
        check_refusals(tally, root, vault, keys, entry)


def check_refusals(tally, root, vault, keys, entry):
    def refuse(what, vault=vault, root=root, **changes):
        changed = {**entry, **changes}
        tally.refuses(
            f"{entry['about']}: {what}", lambda: open_entry(root, vault, keys, changed)
        )

    if entry["payload"] is None:
        refuse("a payload", payload="01" + "00" * 28)
    else:
        refuse("no payload", payload=None)
        for at, changed in flips(bytes.fromhex(entry["payload"])):
            refuse(f"payload, byte {at}", payload=changed.hex())
    for at, changed in flips(entry["envelope"].encode()):
        refuse(f"envelope, character {at}", envelope=changed.decode("latin-1"))
    for at, changed in flips(entry["attributes"].encode()):
        refuse(f"attributes, byte {at}", attributes=changed.decode("latin-1"))
    refuse("longer attributes", attributes=entry["attributes"] + " ")

    refuse("another sequence", sequence=entry["sequence"] ^ 1)
    refuse("another name", secret=entry["secret"] + "x")
    refuse("another version id", version=entry["version"][::-1])
    refuse("moved to another namespace", vault={**vault, "namespace": "x" + vault["namespace"]})
    refuse("moved to another vault name", vault={**vault, "name": "x" + vault["name"]})
    refuse("moved to another vault id", vault={**vault, "id": vault["id"][::-1]})
    shifted = {
        **vault,
        "namespace": vault["namespace"] + vault["name"][0],
        "name": vault["name"][1:],
    }
    refuse("a character across an end", vault=shifted)
    refuse("another root key", root={**root, "key": bytes(32)})
    refuse("another root key id", root={**root, "id": root["id"] + "0"})

    parts = ("payload", "envelope", "attributes")
    for other in vault["entries"]:
        if other is entry:
            continue
        if other["object"] == entry["object"]:
            # What stood at this place before is authentic, as FORMAT.md says.
            earlier = {**entry, **{part: other[part] for part in parts}}
            opened = open_entry(root, vault, keys, earlier)
            tally.same(f"{entry['about']}: put back", opened.hex(), entry["value"])
            continue
        for part in parts:
            if other[part] != entry[part]:
                refuse(f"{part} of {other['about']}", **{part: other[part]})
        refuse(f"all of {other['about']}", **{part: other[part] for part in parts})


def main():
    default = Path(__file__).with_name("vault_envelope.json")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    tally = Tally()
    for vault in json.loads(path.read_text("utf-8"))["vaults"]:
        check_vault(tally, vault)
    print(
        f"{tally.derived} values derived alike, {tally.opened} entries opened, "
        f"{tally.refused} alterations refused"
    )


if __name__ == "__main__":
    main()
