//! The health rule for Argo CD, run by a Lua of the version that Argo CD has, on statuses that the
//! controller writes.

use std::{fs, path::Path};

use claviger::api::condition::{Reason, Report, State, conditions};
use mlua::{Lua, LuaSerdeExt, Table};
use serde_json::{Value, json};

fn rule() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gitops/argocd-cm.yaml");
    let config: Value = serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let rule = &config["data"]["resource.customizations.health.claviger.dev_FunctionKey"];
    rule.as_str().unwrap().to_owned()
}

/// What the rule makes of an object: its health and the message beside it.
fn health(object: &Value) -> (String, String) {
    let lua = Lua::new();
    lua.globals()
        .set("obj", lua.to_value(object).unwrap())
        .unwrap();
    let answer: Table = lua.load(rule()).eval().unwrap();
    (
        answer.get("status").unwrap(),
        answer.get("message").unwrap(),
    )
}

/// A FunctionKey of which the controller reports this.
fn reported(state: State, reason: Reason) -> Value {
    let report = Report {
        state,
        reason,
        message: "what a person reads".to_owned(),
    };
    let conditions = conditions(&report, &[], Some(3), claviger::clock::now());
    json!({
        "metadata": {"name": "orders", "generation": 3}, "spec": {},
        "status": {"observedGeneration": 3, "conditions": conditions},
    })
}

#[test]
fn each_state_of_a_key_has_the_health_that_argo_cd_should_show() {
    for (state, reason, expected) in [
        (State::Ready, Reason::Published, "Healthy"),
        (State::ReadyAndMoving, Reason::Distributing, "Progressing"),
        (State::Moving, Reason::Distributing, "Progressing"),
        (State::Stalled, Reason::StoreRefused, "Degraded"),
    ] {
        let (status, message) = health(&reported(state, reason));
        assert_eq!(status, expected, "{state:?}");
        assert_eq!(message, "what a person reads", "{state:?}");
    }
}

#[test]
fn what_the_controller_has_not_seen_yet_is_progressing() {
    let fresh = json!({"metadata": {"name": "orders", "generation": 1}, "spec": {}});
    assert_eq!(health(&fresh).0, "Progressing");
    let mut empty = fresh;
    empty["status"] = json!({});
    assert_eq!(health(&empty).0, "Progressing");
    let mut behind = reported(State::Ready, Reason::Published);
    behind["metadata"]["generation"] = json!(4);
    let (status, message) = health(&behind);
    assert_eq!(status, "Progressing");
    assert!(message.contains("latest change"), "{message}");
    // A condition that it does not know is no reason to call it healthy.
    let mut other = reported(State::Ready, Reason::Published);
    other["status"]["conditions"] = json!([{"type": "Other", "status": "True"}]);
    assert_eq!(health(&other).0, "Progressing");
}

#[test]
fn a_suspended_key_is_shown_as_suspended() {
    let mut suspended = reported(State::Ready, Reason::Suspended);
    suspended["spec"]["suspend"] = json!(true);
    assert_eq!(health(&suspended).0, "Suspended");
    suspended["spec"]["suspend"] = json!(false);
    assert_eq!(health(&suspended).0, "Healthy");
}

#[test]
fn vaults_are_judged_as_keys_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gitops/argocd-cm.yaml");
    let config: Value = serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let vault = &config["data"]["resource.customizations.health.claviger.dev_SecretVault"];
    let vault = vault.as_str().unwrap();
    assert_eq!(
        vault.replace("of this vault", "of this key").trim_end(),
        rule().trim_end()
    );
}

#[test]
fn assignments_are_judged_as_keys_are_but_for_being_suspended() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gitops/argocd-cm.yaml");
    let config: Value = serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let assignment = &config["data"]["resource.customizations.health.claviger.dev_RoleAssignment"];
    let rule = rule();
    let (_, unsuspended) = rule.split_once("end\n").unwrap();
    assert_eq!(
        assignment.as_str().unwrap().trim_end(),
        unsuspended.trim_end()
    );
}
