//! The metadata of a VM as the tree its server shows.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{Instance, Project, metadata::guest::Guest};

/// A place in the tree.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    /// Names we made: kebab-case in paths, camelCase in recursive answers.
    Directory(BTreeMap<String, Node>),
    /// Names a person made (attributes): the same everywhere.
    Verbatim(BTreeMap<String, Node>),
    /// Numbered places.
    List(Vec<Node>),
    /// A value: its text, and how it stands in a recursive answer.
    Leaf { text: String, json: Value },
    /// A value that only its own path gives, never a listing's recursion (`token`, `identity`).
    Hidden,
}

impl Node {
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self, Self::Directory(_) | Self::Verbatim(_) | Self::List(_))
    }

    /// The place at `path`.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Node> {
        let Some((first, rest)) = path.split_first() else {
            return Some(self);
        };
        let child = match self {
            Self::Directory(children) | Self::Verbatim(children) => children.get(*first)?,
            Self::List(children) => children.get(first.parse::<usize>().ok()?)?,
            Self::Leaf { .. } | Self::Hidden => return None,
        };
        child.at(rest)
    }

    /// Names one a line, directories with a slash.
    pub(crate) fn listing(&self) -> String {
        let line = |(name, child): (String, &Node)| {
            [name.as_str(), if child.is_directory() { "/\n" } else { "\n" }].concat()
        };
        self.children().into_iter().map(line).collect()
    }

    pub(crate) fn json(&self) -> Value {
        let object = |children: &BTreeMap<String, Node>, name: fn(&str) -> String| {
            let shown = children.iter().filter(|(_, child)| **child != Node::Hidden);
            Value::Object(
                shown.map(|(key, child)| (name(key), child.json())).collect::<Map<_, _>>(),
            )
        };
        match self {
            Self::Directory(children) => object(children, camel_case),
            Self::Verbatim(children) => object(children, str::to_owned),
            Self::List(children) => children.iter().map(Node::json).collect(),
            Self::Leaf { json, .. } => json.clone(),
            Self::Hidden => Value::Null,
        }
    }

    /// `path value` lines: a recursive answer with `alt=text`.
    pub(crate) fn lines(&self, prefix: &str) -> String {
        if let Self::Leaf { text, .. } = self {
            return format!("{prefix} {text}\n");
        }
        let join = |name: &str| {
            if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
        };
        self.children().iter().map(|(name, child)| child.lines(&join(name))).collect()
    }

    fn children(&self) -> Vec<(String, &Node)> {
        match self {
            Self::Directory(children) | Self::Verbatim(children) => {
                children.iter().map(|(name, child)| (name.clone(), child)).collect()
            }
            Self::List(children) => children
                .iter()
                .enumerate()
                .map(|(index, child)| (index.to_string(), child))
                .collect(),
            Self::Leaf { .. } | Self::Hidden => Vec::new(),
        }
    }
}

/// Everything under `/computeMetadata/v1`.
pub(crate) fn document(
    project: &Project,
    attributes: &BTreeMap<String, String>,
    instance: &Instance,
    guest: &Guest,
) -> Node {
    let number = project.number;
    directory([
        ("instance", instance_node(project, instance, guest)),
        (
            "project",
            directory([
                ("attributes", verbatim(attributes)),
                ("numeric-project-id", leaf(number.to_string(), number.into())),
                ("project-id", text(&project.id)),
            ]),
        ),
        ("universe", directory([("universe-domain", text("googleapis.com"))])),
    ])
}

fn instance_node(project: &Project, instance: &Instance, guest: &Guest) -> Node {
    let (number, name, zone) = (project.number, &instance.name, &instance.zone);
    let upper = |flag: bool| text(if flag { "TRUE" } else { "FALSE" });
    let guest = guest
        .values
        .iter()
        .map(|(namespace, values)| (namespace.clone(), verbatim(values)))
        .collect();
    directory([
        ("attributes", verbatim(&instance.attributes)),
        ("cpu-platform", text("Intel Broadwell")),
        ("description", text("")),
        ("guest-attributes", Node::Verbatim(guest)),
        ("hostname", text(&format!("{name}.{zone}.c.{}.internal", project.id))),
        ("id", leaf(instance.id.to_string(), instance.id.into())),
        (
            "machine-type",
            text(&format!("projects/{number}/machineTypes/{}", instance.machine_type)),
        ),
        ("maintenance-event", text(&instance.maintenance_event.to_string())),
        ("name", text(name)),
        ("network-interfaces", Node::List(vec![interface(project, instance)])),
        ("preempted", upper(instance.preempted)),
        (
            "scheduling",
            directory([
                ("automatic-restart", upper(!instance.preemptible)),
                (
                    "on-host-maintenance",
                    text(if instance.preemptible { "TERMINATE" } else { "MIGRATE" }),
                ),
                ("preemptible", upper(instance.preemptible)),
            ]),
        ),
        ("service-accounts", accounts(instance)),
        ("tags", leaf(json!(instance.tags).to_string(), json!(instance.tags))),
        // Written as Google's text says for a VM that was told nothing; it stands before HTTP 200 only with alt=json.
        ("upcoming-maintenance", text("NONE")),
        ("virtual-clock", directory([("drift-token", text("0"))])),
        ("zone", text(&format!("projects/{number}/zones/{zone}"))),
    ])
}

fn interface(project: &Project, instance: &Instance) -> Node {
    let [a, b, c, d] = instance.ip.octets();
    directory([
        ("dns-servers", Node::List(vec![text("169.254.169.254")])),
        ("forwarded-ips", Node::List(Vec::new())),
        ("ip", text(&instance.ip.to_string())),
        ("ip-aliases", Node::List(instance.ip_aliases.iter().map(|range| text(range)).collect())),
        // Google derives the hardware address from the internal one in the same way.
        ("mac", text(&format!("42:01:{a:02x}:{b:02x}:{c:02x}:{d:02x}"))),
        ("mtu", leaf("1460".into(), 1460.into())),
        ("network", text(&format!("projects/{}/networks/default", project.number))),
    ])
}

fn accounts(instance: &Instance) -> Node {
    if instance.service_account.is_empty() {
        return Node::Directory(BTreeMap::new());
    }
    let account = directory([
        ("aliases", leaf("default\n".into(), json!(["default"]))),
        ("email", text(&instance.service_account)),
        ("identity", Node::Hidden),
        (
            "scopes",
            leaf(
                instance
                    .scopes
                    .iter()
                    .map(String::as_str)
                    .flat_map(|scope| [scope, "\n"])
                    .collect(),
                json!(instance.scopes),
            ),
        ),
        ("token", Node::Hidden),
    ]);
    Node::Verbatim(
        [("default".to_owned(), account.clone()), (instance.service_account.clone(), account)]
            .into(),
    )
}

fn directory<const N: usize>(children: [(&str, Node); N]) -> Node {
    Node::Directory(children.into_iter().map(|(name, node)| (name.to_owned(), node)).collect())
}

fn verbatim(values: &BTreeMap<String, String>) -> Node {
    Node::Verbatim(values.iter().map(|(key, value)| (key.clone(), text(value))).collect())
}

fn text(value: &str) -> Node {
    leaf(value.to_owned(), value.into())
}

fn leaf(text: String, json: Value) -> Node {
    Node::Leaf { text, json }
}

fn camel_case(kebab: &str) -> String {
    let mut words = kebab.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let mut letters = word.chars();
        name + &letters
            .next()
            .map(|letter| letter.to_ascii_uppercase())
            .into_iter()
            .chain(letters)
            .collect::<String>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_names_turn_camel_case_and_a_persons_do_not() {
        let node = directory([(
            "on-host-maintenance",
            verbatim(&[("my-key".to_owned(), "1".to_owned())].into()),
        )]);
        assert_eq!(node.json(), json!({ "onHostMaintenance": { "my-key": "1" } }));
        assert_eq!(node.lines(""), "on-host-maintenance/my-key 1\n");
    }
}
