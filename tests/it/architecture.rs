//! Who may know whom: the dependency rule of the crate, held by looking at every `use`.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Paths that files below a folder must not name.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    (
        "src/domain",
        &[
            "crate::api",
            "crate::k8s",
            "crate::controllers",
            "crate::clock",
            "crate::key_pair",
            "crate::kms",
            "crate::root_keys",
            "crate::recovery",
            "crate::custody",
            "crate::server",
            "crate::token_keys",
            "kube::",
            "k8s_openapi",
            "tokio",
            "axum",
            "tracing",
            "getrandom",
            "Timestamp::now",
            "SystemTime",
            "Instant::now",
        ],
    ),
    (
        "src/api",
        &[
            "crate::k8s",
            "crate::controllers",
            "tokio",
            "kube::Client",
            "Timestamp::now",
            "getrandom",
        ],
    ),
    (
        "src/k8s",
        &[
            "crate::controllers",
            "crate::domain::plan",
            "crate::domain::rotation",
            "axum",
        ],
    ),
    (
        "src/controllers",
        &["axum", "crate::admin", "crate::cli", "Timestamp::now"],
    ),
    ("src/server", &["Timestamp::now", "crate::domain::plan"]),
    ("src/cli", &["crate::controllers", "crate::k8s", "axum"]),
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn no_layer_names_one_that_it_must_not_know() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut breaches = Vec::new();
    for (folder, forbidden) in FORBIDDEN {
        let files = sources(&root.join(folder));
        assert!(!files.is_empty(), "{folder} has no source files");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let production = text.split("#[cfg(test)]").next().unwrap();
            for (number, line) in production.lines().enumerate() {
                let code = line.split("//").next().unwrap();
                for path in forbidden {
                    if code.contains(path) {
                        breaches.push(format!("{}:{}: {path}", file.display(), number + 1));
                    }
                }
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}
