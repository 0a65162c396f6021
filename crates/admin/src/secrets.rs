//! Secrets of resources: encrypted where they are stored, private keys never shown.

use std::cell::{Cell, RefCell};

use serde_json::{Map, Value};
use sluicegate_model::{
    Kind,
    encrypt::{Keyring, at_path, each_private_key},
    plugin::Catalog,
    resource::is_secret_reference,
};

use crate::{AdminState, Settings, answer::Answer};

/// Encrypts everything that is secret in a checked value, but for the texts that are
/// [sealed](sealed) already.
pub(crate) fn encrypt(
    state: &AdminState,
    settings: &Settings,
    kind: Kind,
    value: &mut Value,
    sealed: &[String],
) {
    if settings.encrypt_fields {
        let catalog = state.catalog.load_full();
        let encrypt = |text: &mut String| {
            if !sealed.contains(text) {
                *text = state.keyring.encrypt(text);
            }
        };
        catalog.each_secret(kind, value, |conf, paths| {
            paths.iter().for_each(|path| at_path(conf, path, &encrypt));
        });
    }
    each_private_key(kind, value, |key| *key = state.keyring.encrypt_pem(key));
}

/// The plugins' secrets in a stored value that were encrypted with a key that is gone. They go
/// through a change as they are: encrypted once more, the key's return would not open them.
pub(crate) fn sealed(state: &AdminState, kind: Kind, value: &Value) -> Vec<String> {
    let catalog = state.catalog.load_full();
    if catalog.sealed_secrets(&state.keyring, kind, value).is_empty() {
        return Vec::new();
    }
    let found = RefCell::new(Vec::new());
    let keep = |text: &mut String| {
        if state.keyring.is_sealed(text) {
            found.borrow_mut().push(text.clone());
        }
    };
    catalog.each_secret(kind, &mut value.clone(), |conf, paths| {
        paths.iter().for_each(|path| at_path(conf, path, &keep));
    });
    found.into_inner()
}

/// Decrypts everything that is secret in a stored value.
pub(crate) fn decrypt(state: &AdminState, kind: Kind, value: &mut Value) {
    state.catalog.load_full().decrypt_resource(&state.keyring, kind, value);
}

/// Decrypts the plugins' secrets, as a read shows them.
pub(crate) fn decrypt_plugins(state: &AdminState, kind: Kind, value: &mut Value) {
    let catalog = state.catalog.load_full();
    catalog.each_secret(kind, value, |conf, paths| state.keyring.decrypt_paths(conf, paths));
}

/// Decrypts the private keys, as a check needs them. One that does not decrypt stays as it is.
pub(crate) fn decrypt_private_keys(state: &AdminState, kind: Kind, value: &mut Value) {
    each_private_key(kind, value, |key| {
        if let Some(plain) = state.keyring.decrypt_pem(key) {
            *key = plain;
        }
    });
}

/// Removes what a read must not show.
pub(crate) fn hide_private_keys(kind: Kind, value: &mut Value) {
    if kind == Kind::Ssls
        && let Some(ssl) = value.as_object_mut()
    {
        ssl.shift_remove("key");
        ssl.shift_remove("keys");
    }
}

/// Removes private keys that are not encrypted from an answer: without a keyring they are stored
/// as they are, and still shown to nobody.
// Differs: APISIX always has a keyring, so its answers always carry the encrypted form.
pub(crate) fn hide_plain_private_keys(kind: Kind, value: &mut Value) {
    let mut plain = false;
    each_private_key(kind, value, |key| plain |= key.contains("PRIVATE KEY"));
    if !plain {
        return;
    }
    hide_private_keys(kind, value);
    for tls in ["/tls", "/upstream/tls"] {
        if let Some(Value::Object(tls)) = value.pointer_mut(tls) {
            tls.shift_remove("client_key");
        }
    }
}

/// Puts [`REDACTED`] in the places of secrets, where the settings ask for it. References tell no
/// secret and are shown.
pub(crate) fn redact(state: &AdminState, settings: &Settings, kind: Kind, value: &mut Value) {
    if !settings.redact_secrets {
        return;
    }
    each_secret_text(&state.catalog.load_full(), kind, value, &|text| {
        let plain = state.keyring.decrypt(text).filter(|plain| is_secret_reference(plain));
        if let Some(reference) = plain {
            *text = reference;
        } else if !is_secret_reference(text) {
            REDACTED.clone_into(text);
        }
    });
}

/// Puts [`REDACTED`] in the place of every secret that is not encrypted, for readers without a key.
pub(crate) fn redact_plain(catalog: &Catalog, keyring: &Keyring, kind: Kind, value: &mut Value) {
    each_secret_text(catalog, kind, value, &|text| {
        let encrypted = !keyring.is_empty() && keyring.decrypt(text).is_some();
        if !encrypted && !is_secret_reference(text) {
            REDACTED.clone_into(text);
        }
    });
}

/// Redacts a whole configuration, in APISIX's standalone form.
pub(crate) fn redact_declaration(
    state: &AdminState,
    settings: &Settings,
    declaration: &mut Map<String, Value>,
) {
    if !settings.redact_secrets {
        return;
    }
    for (name, list) in declaration {
        let Some(kind) = Kind::from_plural(name) else { continue };
        for value in list.as_array_mut().into_iter().flatten() {
            hide_private_keys(kind, value);
            redact(state, settings, kind, value);
        }
    }
}

/// Refuses what [`redact`] put into an answer and somebody sends back: it would be stored as the
/// secret.
pub(crate) fn refuse_redacted(
    state: &AdminState,
    settings: &Settings,
    kind: Kind,
    value: &Value,
) -> Result<(), Answer> {
    if !settings.redact_secrets {
        return Ok(());
    }
    let found = Cell::new(false);
    let look = |text: &mut String| found.set(found.get() || text == REDACTED);
    each_secret_text(&state.catalog.load_full(), kind, &mut value.clone(), &look);
    match found.get() {
        true => Err(Answer::refused(format!("a secret is {REDACTED:?}: send what it is"))),
        false => Ok(()),
    }
}

fn each_secret_text(catalog: &Catalog, kind: Kind, value: &mut Value, each: &dyn Fn(&mut String)) {
    catalog.each_secret(kind, value, |conf, paths| {
        paths.iter().for_each(|path| at_path(conf, path, each));
    });
    if kind == Kind::Secrets {
        MANAGER_SECRETS.iter().for_each(|path| at_path(value, path, each));
    }
    each_private_key(kind, value, each);
}

/// What stands in the place of a secret.
const REDACTED: &str = "***";

/// The secrets of all secret managers.
const MANAGER_SECRETS: &[&str] =
    &["token", "access_key_id", "secret_access_key", "session_token", "auth_config.private_key"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_private_key_without_encryption_is_in_no_answer() {
        let tls = |key: &str| json!({"client_cert": "c", "client_key": key});
        let plain = "-----BEGIN PRIVATE KEY-----";
        for (kind, value, hidden) in [
            (Kind::Ssls, json!({"key": plain, "keys": [plain]}), json!({})),
            (Kind::Upstreams, json!({"tls": tls(plain)}), json!({"tls": {"client_cert": "c"}})),
            (
                Kind::Routes,
                json!({"upstream": {"tls": tls(plain)}}),
                json!({"upstream": {"tls": {"client_cert": "c"}}}),
            ),
            (Kind::Upstreams, json!({"tls": tls("b0xd")}), json!({"tls": tls("b0xd")})),
        ] {
            let mut shown = value.clone();
            hide_plain_private_keys(kind, &mut shown);
            assert_eq!(shown, hidden, "{kind:?} {value}");
        }
    }
}
