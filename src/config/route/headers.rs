//! Header changes of routes, virtual hosts, tables and shares.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use weft_api::envoy::config::core::v3::{HeaderValueOption, header_value_option};

use crate::config::problems::Problems;

/// Header changes, in the order of the fields: removals after additions, as Envoy does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderMutations {
    /// `OVERWRITE_IF_EXISTS_OR_ADD`.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// `OVERWRITE_IF_EXISTS`.
    pub replace: Vec<(HeaderName, HeaderValue)>,
    /// `ADD_IF_ABSENT`.
    pub add_if_absent: Vec<(HeaderName, HeaderValue)>,
    /// `APPEND_IF_EXISTS_OR_ADD`.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// `*_headers_to_remove`.
    pub remove: Vec<HeaderName>,
    /// The changes of the virtual host and the route table around, which come after.
    pub outer: Vec<Arc<Self>>,
}

impl HeaderMutations {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
            && self.replace.is_empty()
            && self.add_if_absent.is_empty()
            && self.add.is_empty()
            && self.remove.is_empty()
            && self.outer.is_empty()
    }

    /// Applies the changes. An added value joins existing ones as a field of its own.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.replace {
            if headers.contains_key(name) {
                headers.insert(name, value.clone());
            }
        }
        for (name, value) in &self.add_if_absent {
            if !headers.contains_key(name) {
                headers.insert(name, value.clone());
            }
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
        for outer in &self.outer {
            outer.apply(headers);
        }
    }
}

pub(super) fn outer_mutations(
    p: &mut Problems,
    field: &str,
    add: &[HeaderValueOption],
    remove: &[String],
) -> Vec<Arc<HeaderMutations>> {
    let mutations = mutations(p, field, add, remove);
    if mutations.is_empty() {
        Vec::new()
    } else {
        vec![Arc::new(mutations)]
    }
}

/// Reads `<field>_to_add` and `<field>_to_remove`.
pub(super) fn mutations(
    p: &mut Problems,
    field: &str,
    add: &[HeaderValueOption],
    remove: &[String],
) -> HeaderMutations {
    let mut all = HeaderMutations::default();
    for (index, option) in add.iter().enumerate() {
        p.at(format_args!("{field}_to_add[{index}]"), |p| {
            add_mutation(p, &mut all, option)
        });
    }
    for (index, name) in remove.iter().enumerate() {
        let field = format!("{field}_to_remove[{index}]");
        all.remove.extend(mutable_name(p, &field, name));
    }
    all
}

#[allow(deprecated)] // `append` is what older senders set.
fn add_mutation(p: &mut Problems, all: &mut HeaderMutations, from: &HeaderValueOption) {
    use header_value_option::HeaderAppendAction as Action;
    let Some(header) = &from.header else {
        p.reject("header", "is missing");
        return;
    };
    let name = mutable_name(p, "header.key", &header.key);
    let bytes = if header.value.is_empty() {
        header.raw_value.clone()
    } else {
        match literal(&header.value) {
            Ok(text) => text.into_bytes(),
            Err(command) => {
                p.reject(
                    "header.value",
                    format_args!("{command} is not supported; write %% for a percent sign"),
                );
                return;
            }
        }
    };
    let value = HeaderValue::from_bytes(&bytes);
    if value.is_err() {
        p.reject("header.value", "has control characters");
    }
    let action = match from.append {
        Some(append) if !append.value => Action::OverwriteIfExistsOrAdd as i32,
        _ => from.append_action,
    };
    let action = Action::try_from(action);
    if action.is_err() {
        p.reject(
            "append_action",
            format_args!("{} is not known", from.append_action),
        );
    }
    let (Some(name), Ok(value), Ok(action)) = (name, value, action) else {
        return;
    };
    if value.is_empty() && !from.keep_empty_value {
        p.warn(
            "header.value",
            "is empty and has no effect without keep_empty_value",
        );
        return;
    }
    match action {
        Action::AppendIfExistsOrAdd => all.add.push((name, value)),
        Action::AddIfAbsent => all.add_if_absent.push((name, value)),
        Action::OverwriteIfExists => all.replace.push((name, value)),
        Action::OverwriteIfExistsOrAdd => {
            // In the order of the list it would overwrite what was added before.
            all.add.retain(|(added, _)| *added != name);
            all.set.push((name, value));
        }
    }
}

/// A header that may be changed: not one that frames the message or names the host.
fn mutable_name(p: &mut Problems, field: &str, name: &str) -> Option<HeaderName> {
    let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
        p.reject(field, format_args!("{name:?} is no header name"));
        return None;
    };
    let fixed = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    if fixed.contains(&parsed) {
        p.reject(
            field,
            format_args!("{parsed} must not be changed by a route"),
        );
        return None;
    }
    Some(parsed)
}

/// A value without Envoy's command operators: `%%` is a percent sign. A `%` that starts no
/// command is one too.
///
/// # Errors
/// The command operator that was found.
fn literal(value: &str) -> Result<String, &str> {
    let mut text = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        text.push('%');
        rest = after;
        if let Some(after) = after.strip_prefix('%') {
            rest = after;
        } else if let Some(end) = command_end(after) {
            let start = value.len() - after.len() - 1;
            return Err(&value[start..start + end + 2]);
        }
    }
    text.push_str(rest);
    Ok(text)
}

/// Where the closing `%` of `NAME%` or `NAME(...)%` is.
fn command_end(text: &str) -> Option<usize> {
    let name = text
        .bytes()
        .take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_')
        .count();
    let rest = &text[name..];
    let closes = rest.starts_with('%') || rest.starts_with('(');
    (name > 0 && closes).then(|| text.find('%')).flatten()
}
