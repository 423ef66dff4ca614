//! The schema as `query-qmp-schema` shows it: types by number, not by name.

use super::define::{EMPTY, EnumType, Find, Int, Member, StructType, Type};
use super::schema::{COMMANDS, EVENTS};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, VecDeque};

/// Describes `commands`, every event, and the types they use.
pub fn introspect(commands: &[&str]) -> Value {
    let mut listing = Listing::default();
    for event in EVENTS {
        let data = listing.arguments(event.data);
        listing
            .entries
            .push(json!({"name": event.name, "meta-type": "event", "arg-type": data}));
    }
    for command in COMMANDS.iter().filter(|command| commands.contains(&command.name)) {
        let arguments = listing.arguments(command.arguments);
        let returns = match command.returns {
            Some(returns) => listing.name(returns),
            None => listing.structure(empty),
        };
        let mut entry = json!({
            "name": command.name, "meta-type": "command", "arg-type": arguments, "ret-type": returns,
        });
        add_features(&mut entry, command.features);
        listing.entries.push(entry);
    }
    while let Some((name, pending)) = listing.pending.pop_front() {
        let entry = listing.describe(name, pending);
        listing.entries.push(entry);
    }
    Value::Array(listing.entries)
}

fn empty() -> &'static StructType {
    &EMPTY
}

fn place<T>(of: &'static T) -> Key {
    Key::Place(std::ptr::from_ref(of).addr())
}

/// Entries made so far, and types that were named but not yet described.
#[derive(Default)]
struct Listing {
    entries: Vec<Value>,
    names: HashMap<Key, String>,
    numbers: usize,
    pending: VecDeque<(String, Type)>,
}

/// What makes a type the same as another: a builtin's or a list's name, or where its table stands.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Text(String),
    Place(usize),
}

impl Listing {
    fn arguments(&mut self, find: Find<StructType>) -> String {
        let object = find();
        let is_empty = object.members.is_empty() && object.tag.is_none();
        self.structure(if is_empty { empty } else { find })
    }

    fn structure(&mut self, find: Find<StructType>) -> String {
        self.name(Type::Struct(find))
    }

    /// The name that stands for `of`; on first use it is queued to be described.
    fn name(&mut self, of: Type) -> String {
        let (key, text) = match of {
            Type::List(item) => {
                let text = format!("[{}]", self.name(*item));
                (Key::Text(text.clone()), Some(text))
            }
            Type::Enum(find) => (place(find()), None),
            Type::Struct(find) => (place(find()), None),
            Type::Alternate(find) => (place(find()), None),
            Type::Str | Type::Int(_) | Type::Bool | Type::Number | Type::Null | Type::Any => {
                let text = builtin(of).0.to_owned();
                (Key::Text(text.clone()), Some(text))
            }
        };
        if let Some(name) = self.names.get(&key) {
            return name.clone();
        }
        let name = text.unwrap_or_else(|| {
            self.numbers += 1;
            (self.numbers - 1).to_string()
        });
        self.names.insert(key, name.clone());
        self.pending.push_back((name.clone(), of));
        name
    }

    fn describe(&mut self, name: String, of: Type) -> Value {
        match of {
            Type::List(item) => {
                let item = self.name(*item);
                json!({"name": name, "element-type": item, "meta-type": "array"})
            }
            Type::Enum(find) => describe_enum(&name, find()),
            Type::Struct(find) => self.describe_struct(&name, find()),
            Type::Alternate(find) => {
                let members: Vec<Value> = find()
                    .branches
                    .iter()
                    .map(|branch| json!({"type": self.name(*branch)}))
                    .collect();
                json!({"name": name, "members": members, "meta-type": "alternate"})
            }
            Type::Str | Type::Int(_) | Type::Bool | Type::Number | Type::Null | Type::Any => {
                json!({"name": name, "json-type": builtin(of).1, "meta-type": "builtin"})
            }
        }
    }

    fn describe_struct(&mut self, name: &str, of: &'static StructType) -> Value {
        let members: Vec<Value> = of
            .members
            .iter()
            .map(|member| self.describe_member(member))
            .collect();
        let mut entry = json!({"name": name, "members": members, "meta-type": "object"});
        if let (Some(tag), Some(entry)) = (of.tag, entry.as_object_mut()) {
            let variants = self.describe_branches(of, tag);
            entry.insert("tag".into(), tag.into());
            entry.insert("variants".into(), variants);
        }
        add_features(&mut entry, of.features);
        entry
    }

    fn describe_member(&mut self, member: &'static Member) -> Value {
        let mut entry = Map::new();
        entry.insert("name".into(), member.name.into());
        if member.optional {
            entry.insert("default".into(), Value::Null);
        }
        entry.insert("type".into(), self.name(member.of).into());
        let mut entry = Value::Object(entry);
        add_features(&mut entry, member.features);
        entry
    }

    /// One entry for each value of the tag, also for those that add nothing.
    fn describe_branches(&mut self, of: &'static StructType, tag: &str) -> Value {
        let values = of
            .members
            .iter()
            .find(|member| member.name == tag)
            .map(|member| member.of);
        let Some(Type::Enum(values)) = values else {
            return Value::Array(Vec::new());
        };
        let branches = values().values.iter().map(|value| {
            let found = of.branches.iter().find(|(name, _)| name == value);
            let branch = self.structure(found.map_or(empty, |(_, branch)| *branch));
            json!({"case": value, "type": branch})
        });
        Value::Array(branches.collect())
    }
}

fn describe_enum(name: &str, of: &EnumType) -> Value {
    let features = of.features.iter().copied().chain(std::iter::repeat(&[][..]));
    let member = |(value, features): (&&str, &[&str])| {
        let mut member = json!({"name": value});
        add_features(&mut member, features);
        member
    };
    let members: Vec<Value> = of.values.iter().zip(features).map(member).collect();
    json!({"name": name, "members": members, "meta-type": "enum", "values": of.values})
}

fn add_features(entry: &mut Value, features: &[&str]) {
    if let (false, Some(entry)) = (features.is_empty(), entry.as_object_mut()) {
        entry.insert("features".into(), json!(features));
    }
}

/// The name and the JSON type of a builtin.
fn builtin(of: Type) -> (&'static str, &'static str) {
    match of {
        Type::Str => ("str", "string"),
        Type::Int(Int::I64 | Int::I32 | Int::U64 | Int::U32 | Int::U16 | Int::Size) => ("int", "int"),
        Type::Bool => ("bool", "boolean"),
        Type::Number => ("number", "number"),
        Type::Null => ("null", "null"),
        _ => ("any", "value"),
    }
}
