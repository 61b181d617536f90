//! SECURITY.md names the tests that hold each threat: they exist, by these names.

use std::{fs, path::Path};

#[test]
fn every_test_that_the_threats_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let named: Vec<(&str, &str)> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.split_once("::"))
        .filter(|(file, _)| Path::new(file).extension().is_some_and(|kind| kind == "rs"))
        .collect();
    assert!(named.len() > 100, "{} tests are named", named.len());
    for (file, function) in named {
        let text = fs::read_to_string(root.join(file)).unwrap_or_else(|_| panic!("{file}"));
        let (before, _) = text
            .split_once(&format!("fn {function}("))
            .unwrap_or_else(|| panic!("{file} has no {function}"));
        // Of a property test the attribute stands on the macro's own function.
        let head: Vec<&str> = before.lines().rev().take(8).collect();
        assert!(
            head.iter()
                .any(|line| line.contains("test]") || line.contains("test(")),
            "{file}::{function} is no test"
        );
    }
    // Each threat names one, or says why there is none.
    let (_, threats) = page.split_once("\n## Threats\n").unwrap();
    for threat in threats.split("\n### ").skip(1) {
        assert!(threat.contains("\nTests: `"), "{threat}");
    }
}
