//! Objects that users make: iothreads, the tuning of the main loop, message policies, and throttle groups.

use super::chaos::{CHAOS_PROPERTIES, ChaosObject};
use millpond_messages::graph::IothreadOptions;
use millpond_messages::qapi::{Object, QmpError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::throttle_group::{self, LIMITS, THROTTLE_GROUP, ThrottleGroup};

/// The tuning of the main loop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MainLoop {
    /// The object's id, which its user chose.
    pub id: String,
    /// The most requests in one batch; 0 chooses.
    #[serde(default)]
    pub aio_max_batch: i64,
    /// Threads of the pool kept when idle.
    #[serde(default)]
    pub thread_pool_min: i64,
    /// The most threads of the pool.
    #[serde(default = "default_pool_max")]
    pub thread_pool_max: i64,
}

fn default_pool_max() -> i64 {
    64
}

/// An object a user made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserObject {
    /// A thread that runs nodes.
    Iothread(IothreadOptions),
    /// The tuning of the main loop.
    MainLoop(MainLoop),
    /// A message policy, which delays messages.
    Chaos(ChaosObject),
    /// Limits that nodes share.
    ThrottleGroup(ThrottleGroup),
}

/// Properties in the order in which they are listed.
const MAIN_LOOP_PROPERTIES: &[&str] = &["thread-pool-min", "aio-max-batch", "thread-pool-max"];
const IOTHREAD_PROPERTIES: &[&str] = &[
    "thread-pool-min",
    "aio-max-batch",
    "thread-pool-max",
    "poll-max-ns",
    "poll-grow",
    "poll-shrink",
    CPU_AFFINITY,
];

/// Not one of QEMU's: the processors that the thread may run on.
pub const CPU_AFFINITY: &str = "x-millpond-cpu-affinity";

/// The properties of objects of a type, besides the type itself; `None` if users cannot make such.
pub fn properties_of(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "iothread" => Some(IOTHREAD_PROPERTIES),
        "main-loop" => Some(MAIN_LOOP_PROPERTIES),
        "chaos" => Some(CHAOS_PROPERTIES),
        THROTTLE_GROUP => Some(throttle_group::PROPERTIES),
        _ => None,
    }
}

/// The name of a property's type.
pub fn type_of(property: &str) -> &'static str {
    match property {
        CPU_AFFINITY | "rules" => "list",
        LIMITS => "ThrottleLimits",
        _ => "int",
    }
}

impl UserObject {
    /// Makes one from the checked arguments of `object-add`.
    ///
    /// # Errors
    /// A property is out of its range.
    pub fn from_options(mut options: Object) -> Result<Self, QmpError> {
        let kind = options.shift_remove("qom-type");
        match kind.as_ref().and_then(Value::as_str) {
            Some("chaos") => return ChaosObject::from_options(options).map(Self::Chaos),
            Some(THROTTLE_GROUP) => return ThrottleGroup::from_options(options).map(Self::ThrottleGroup),
            _ => {}
        }
        for (name, value) in &options {
            if let Some(value) = value.as_i64() {
                in_range(name, value)?;
            }
        }
        let options = Value::Object(options);
        let object = match kind.as_ref().and_then(Value::as_str) {
            Some("main-loop") => serde_json::from_value(options).map(Self::MainLoop),
            _ => serde_json::from_value(options).map(Self::Iothread),
        };
        let object = object.map_err(|error| QmpError::generic(error.to_string()))?;
        object.check_pool()?;
        Ok(object)
    }

    /// The object's id, which its user chose.
    pub fn id(&self) -> &str {
        match self {
            Self::Iothread(iothread) => &iothread.id,
            Self::MainLoop(main_loop) => &main_loop.id,
            Self::Chaos(chaos) => &chaos.id,
            Self::ThrottleGroup(group) => &group.id,
        }
    }

    /// The name of the object's type.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Iothread(_) => "iothread",
            Self::MainLoop(_) => "main-loop",
            Self::Chaos(_) => "chaos",
            Self::ThrottleGroup(_) => THROTTLE_GROUP,
        }
    }

    /// A property's value; `None` if it has no such.
    pub fn get(&self, property: &str) -> Option<Value> {
        if property == "type" {
            return Some(self.kind().into());
        }
        properties_of(self.kind()).filter(|known| known.contains(&property))?;
        let all = match self {
            Self::Iothread(iothread) => serde_json::to_value(iothread),
            Self::MainLoop(main_loop) => serde_json::to_value(main_loop),
            Self::Chaos(chaos) => return chaos.get(property),
            Self::ThrottleGroup(group) => return group.get(property),
        };
        // Left out when it is empty.
        let missing = (property == CPU_AFFINITY).then(|| Value::Array(Vec::new()));
        all.ok()?.get(property).cloned().or(missing)
    }

    /// The object with a property changed.
    ///
    /// # Errors
    /// It has no such property, or the value does not fit.
    pub fn with(&self, property: &str, value: &Value) -> Result<Self, QmpError> {
        let kind = self.kind();
        if property == "type" {
            return Err(QmpError::generic(format!(
                "Property '{kind}.type' is not writable"
            )));
        }
        if self.get(property).is_none() {
            return Err(QmpError::generic(format!(
                "Property '{kind}.{property}' not found"
            )));
        }
        if let Self::ThrottleGroup(group) = self {
            return group.with(property, value).map(Self::ThrottleGroup);
        }
        if property == CPU_AFFINITY {
            let text =
                format!("Property '{kind}.{property}' cannot be changed: a thread keeps its processors");
            return Err(QmpError::generic(text));
        }
        if let Self::Chaos(chaos) = self {
            return chaos.with(property, value).map(Self::Chaos);
        }
        let Some(value) = value.as_i64() else {
            let text = format!("Invalid parameter type for '{property}', expected: integer");
            return Err(QmpError::generic(text));
        };
        in_range(property, value)?;
        let mut changed = self.clone();
        if let Some(place) = changed.place(property) {
            *place = value;
        }
        changed.check_pool()?;
        Ok(changed)
    }

    fn place(&mut self, property: &str) -> Option<&mut i64> {
        Some(match (self, property) {
            (Self::Iothread(iothread), "poll-max-ns") => &mut iothread.poll_max_ns,
            (Self::Iothread(iothread), "poll-grow") => &mut iothread.poll_grow,
            (Self::Iothread(iothread), "poll-shrink") => &mut iothread.poll_shrink,
            (Self::Iothread(iothread), "aio-max-batch") => &mut iothread.aio_max_batch,
            (Self::Iothread(iothread), "thread-pool-min") => &mut iothread.thread_pool_min,
            (Self::Iothread(iothread), "thread-pool-max") => &mut iothread.thread_pool_max,
            (Self::MainLoop(main_loop), "aio-max-batch") => &mut main_loop.aio_max_batch,
            (Self::MainLoop(main_loop), "thread-pool-min") => &mut main_loop.thread_pool_min,
            (Self::MainLoop(main_loop), "thread-pool-max") => &mut main_loop.thread_pool_max,
            _ => return None,
        })
    }

    fn check_pool(&self) -> Result<(), QmpError> {
        let (least, most) = match self {
            Self::Iothread(iothread) => (iothread.thread_pool_min, iothread.thread_pool_max),
            Self::MainLoop(main_loop) => (main_loop.thread_pool_min, main_loop.thread_pool_max),
            Self::Chaos(_) => return Ok(()),
            Self::ThrottleGroup(_) => return Ok(()),
        };
        if most == 0 || least > most {
            return Err(QmpError::generic("bad thread-pool-min/thread-pool-max values"));
        }
        Ok(())
    }
}

fn in_range(property: &str, value: i64) -> Result<(), QmpError> {
    if value < 0 {
        let text = format!("{property} value must be in range [0, {}]", i64::MAX);
        return Err(QmpError::generic(text));
    }
    Ok(())
}

/// The objects there are, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Objects {
    objects: Vec<UserObject>,
}

impl Objects {
    /// The object called `id`.
    pub fn find(&self, id: &str) -> Option<&UserObject> {
        self.objects.iter().find(|object| object.id() == id)
    }

    /// All objects, in the order in which they were made.
    pub fn all(&self) -> &[UserObject] {
        &self.objects
    }

    /// Whether `object` may be added.
    ///
    /// # Errors
    /// Its id is taken, or there may be only one of its type.
    pub fn may_add(&self, object: &UserObject) -> Result<(), QmpError> {
        let is_main_loop = |object: &UserObject| matches!(object, UserObject::MainLoop(_));
        if is_main_loop(object) && self.objects.iter().any(is_main_loop) {
            return Err(QmpError::generic("only one main-loop instance allowed"));
        }
        let is_chaos = |object: &UserObject| matches!(object, UserObject::Chaos(_));
        if is_chaos(object) && self.objects.iter().any(is_chaos) {
            return Err(QmpError::generic("only one chaos instance allowed"));
        }
        if self.find(object.id()).is_some() {
            let id = object.id();
            let text = format!("attempt to add duplicate property '{id}' to object (type 'container')");
            return Err(QmpError::generic(text));
        }
        Ok(())
    }

    /// Adds an object, or puts it in the place of the one with its id.
    pub fn put(&mut self, object: UserObject) {
        match self.objects.iter_mut().find(|old| old.id() == object.id()) {
            Some(old) => *old = object,
            None => self.objects.push(object),
        }
    }

    /// Forgets the object of an id, if there is one.
    pub fn remove(&mut self, id: &str) {
        self.objects.retain(|object| object.id() != id);
    }
}
