use age::secrecy::ExposeSecret as _;

use super::*;

fn identity() -> (String, String) {
    let identity = x25519::Identity::generate();
    (
        identity.to_string().expose_secret().to_owned(),
        identity.to_public().to_string(),
    )
}

fn key() -> Material {
    Material::new(Zeroizing::new([0xab; 32]))
}

#[test]
fn each_recipient_opens_and_nobody_else() {
    let ((one, public_one), (two, public_two), (stranger, _)) =
        (identity(), identity(), identity());
    let recipients = Recipients::parse(&[&public_one, &public_two]).unwrap();
    let sealed = seal_root_key(&recipients, &key()).unwrap();
    assert!(is_armored(&sealed), "{sealed}");
    for identities in [
        one.clone(),
        two,
        format!("# created: today\n# public key: x\n{stranger}\n\n{one}\n"),
    ] {
        let opened = open_root_key(&identities, sealed.as_bytes()).unwrap();
        assert_eq!(opened.expose(), key().expose());
        assert_eq!(opened.id(), key().id());
    }
    let error = open_root_key(&stranger, sealed.as_bytes()).unwrap_err();
    assert!(matches!(error, Error::NotForUs), "{error}");
    assert!(matches!(
        seal_root_key(&Recipients::default(), &key()),
        Err(Error::NoRecipient)
    ));
}

#[test]
fn a_backup_is_what_the_documentation_says() {
    let (identity, public) = identity();
    let recipients = Recipients::parse(&[public]).unwrap();
    let sealed = seal_root_key(&recipients, &key()).unwrap();
    let plaintext = open_with(&identity, sealed.as_bytes()).unwrap();
    let id = key().id();
    let base64 = "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=";
    assert_eq!(
        String::from_utf8(plaintext.to_vec()).unwrap(),
        format!(
            "{{\"kind\":\"claviger-root-key\",\"version\":1,\"id\":\"{id}\",\"key\":\"{base64}\"}}\n"
        )
    );
}

#[test]
fn a_changed_or_other_file_is_told_from_a_backup() {
    let (identity, public) = identity();
    let recipients = Recipients::parse(&[public]).unwrap();
    let sealed = seal_root_key(&recipients, &key()).unwrap();
    for broken in [
        String::new(),
        "hello".to_owned(),
        sealed[..sealed.len() / 2].to_owned(),
        sealed.replacen("\nY", "\nZ", 1),
        sealed.replace("-----END", "AAAA\n-----END"),
    ] {
        if broken != sealed {
            let error = open_root_key(&identity, broken.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::NotAge), "{error}: {broken}");
        }
    }
    for (at, line) in sealed.lines().enumerate().skip(1) {
        if line.starts_with('-') {
            continue;
        }
        let other = if line.starts_with('A') { "B" } else { "A" };
        let changed: Vec<String> = sealed
            .lines()
            .enumerate()
            .map(|(number, line)| {
                if number == at {
                    format!("{other}{}", &line[1..])
                } else {
                    line.to_owned()
                }
            })
            .collect();
        let changed = changed.join("\n") + "\n";
        assert!(open_root_key(&identity, changed.as_bytes()).is_err());
    }

    let id = key().id();
    let zeros = STANDARD.encode([0; 32]);
    let short = STANDARD.encode([0; 31]);
    for content in [
        String::new(),
        "{}".to_owned(),
        format!(r#"{{"kind":"other","version":1,"id":"{id}","key":"{zeros}"}}"#),
        format!(r#"{{"kind":"claviger-root-key","version":2,"id":"{id}","key":"{zeros}"}}"#),
        format!(r#"{{"kind":"claviger-root-key","version":1,"id":"{id}","key":"{zeros}"}}"#),
        format!(r#"{{"kind":"claviger-root-key","version":1,"id":"{id}","key":"{short}"}}"#),
        format!(r#"{{"kind":"claviger-root-key","version":1,"id":"{id}","key":"?"}}"#),
    ] {
        let sealed = seal_to(&recipients, content.as_bytes()).unwrap();
        let error = open_root_key(&identity, sealed.as_bytes()).unwrap_err();
        assert!(matches!(error, Error::NotARootKey { .. }), "{error}");
        assert!(!error.to_string().contains(&zeros));
    }
}

#[test]
fn recipients_are_x25519_only() {
    let (secret, public) = identity();
    let (_, other) = identity();
    for (text, wanted) in [
        (secret.as_str(), RecipientFault::Identity),
        (
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN",
            RecipientFault::Ssh,
        ),
        (
            "age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t",
            RecipientFault::OtherKind,
        ),
        ("age1pq1qqqqqqqq", RecipientFault::OtherKind),
        ("age1qqqq", RecipientFault::Malformed),
        ("somebody@example.org", RecipientFault::Malformed),
        (&public[..public.len() - 1], RecipientFault::Malformed),
    ] {
        let error = Recipients::parse(&[public.as_str(), text]).unwrap_err();
        assert!(
            matches!(error, Error::Recipient { number: 2, fault } if fault == wanted),
            "{text}: {error}"
        );
        let words = format!("{error} {error:?}");
        assert!(
            words.starts_with("recipient 2 is ") && !words.contains(text),
            "{words}"
        );
    }

    let digest = |texts: &[&str]| Recipients::parse(texts).unwrap().digest();
    let both = digest(&[&public, &other]);
    assert_eq!(both, digest(&[&other, "", &format!(" {public} "), &public]));
    assert_eq!(both.len(), 32);
    assert_ne!(both, digest(&[&public]));
    assert_ne!(both, digest(&[]));
    assert!(Recipients::parse(&[""]).unwrap().is_empty());
}

#[test]
fn a_file_of_identities_is_told_from_anything_else() {
    let (secret, public) = identity();
    let recipients = Recipients::parse(&[public.as_str()]).unwrap();
    let sealed = seal_root_key(&recipients, &key()).unwrap();
    for (text, wanted) in [
        (String::new(), IdentityFault::Empty),
        ("# nothing\n".to_owned(), IdentityFault::Empty),
        (public, IdentityFault::Line(1)),
        (format!("# a\n{}\n", &secret[..70]), IdentityFault::Line(2)),
        (sealed.clone(), IdentityFault::Encrypted),
    ] {
        let error = open_root_key(&text, sealed.as_bytes()).unwrap_err();
        assert!(
            matches!(error, Error::Identity { fault } if fault == wanted),
            "{error}"
        );
        assert!(!format!("{error} {error:?}").contains(&secret[15..40]));
    }
    // With line ends from Windows it is still one.
    open_root_key(&format!("# a\r\n{secret}\r\n"), sealed.as_bytes()).unwrap();
}
