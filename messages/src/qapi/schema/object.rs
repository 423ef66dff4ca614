//! Objects that users make, and the tree that shows them.

use super::crypto::{SecretKeyringProperties, SecretProperties};
use super::tls::{
    AuthZListFileProperties, AuthZListProperties, AuthZPAMProperties, AuthZSimpleProperties,
    TlsCredsAnonProperties, TlsCredsPskProperties, TlsCredsX509Properties,
};
use crate::qapi::row::qapi;
use serde_json::Value;

qapi! {
    /// An object that is to be made, also what `--object` takes. The object's kind reads the rest of it.
    open union ObjectOptions {
        @"qom-type": ObjectType {
            "authz-list": AuthZListProperties,
            "authz-list-file": AuthZListFileProperties,
            "authz-listfile": AuthZListFileProperties,
            "authz-pam": AuthZPAMProperties,
            "authz-simple": AuthZSimpleProperties,
            "iothread": IothreadProperties,
            "main-loop": MainLoopProperties,
            "monitor-qmp": MonitorQmpProperties,
            "chaos": MillpondChaosProperties,
            "secret": SecretProperties,
            "secret_keyring": SecretKeyringProperties,
            "throttle-group": ThrottleGroupProperties,
            "tls-creds-anon": TlsCredsAnonProperties,
            "tls-creds-psk": TlsCredsPskProperties,
            "tls-creds-x509": TlsCredsX509Properties,
        },
        id: String,
    }

    /// The kinds of object that users can make.
    enum ObjectType {
        /// Rules that say who may connect.
        AuthzList = "authz-list",
        /// The same rules in a file. QEMU lists the type by this name and makes none of it.
        AuthzListFile = "authz-list-file",
        /// The same as `authz-list-file`, as QEMU's schema spells it.
        AuthzListfile = "authz-listfile",
        /// Who may connect, as PAM has it. Not made here, nor by a QEMU without PAM.
        AuthzPam = "authz-pam",
        /// The one who may connect.
        AuthzSimple = "authz-simple",
        /// A thread that runs nodes.
        Iothread = "iothread",
        /// The tuning of the main loop.
        MainLoop = "main-loop",
        /// A monitor on a character device.
        MonitorQmp = "monitor-qmp",
        /// A delay policy, which holds messages back. Not QEMU's.
        Chaos = "chaos",
        /// A password or key.
        Secret = "secret",
        /// A password or key that the kernel keeps.
        SecretKeyring = "secret_keyring",
        /// Limits that nodes share.
        ThrottleGroup = "throttle-group",
        /// Credentials for TLS without any.
        TlsCredsAnon = "tls-creds-anon",
        /// Credentials for TLS by keys that both sides have.
        TlsCredsPsk = "tls-creds-psk",
        /// Credentials for TLS by certificates.
        TlsCredsX509 = "tls-creds-x509",
    }

    /// The properties of an iothread.
    open struct IothreadProperties {
        aio_max_batch: Option<i64>,
        thread_pool_min: Option<i64>,
        thread_pool_max: Option<i64>,
        poll_max_ns: Option<i64>,
        poll_grow: Option<i64>,
        poll_shrink: Option<i64>,
        // Not QEMU's.
        x_millpond_cpu_affinity: Option<Vec<u16>>,
    }

    /// The properties of the main loop.
    open struct MainLoopProperties {
        aio_max_batch: Option<i64>,
        thread_pool_min: Option<i64>,
        thread_pool_max: Option<i64>,
    }

    /// The properties of a monitor.
    open struct MonitorQmpProperties {
        chardev: String,
        pretty: Option<bool>,
        close_action: Option<MonitorCloseAction>,
    }

    /// What becomes of a monitor whose client has gone.
    #[derive(Default)]
    enum MonitorCloseAction {
        /// It waits for the next client.
        #[default]
        None = "none",
        /// It is removed, as with `object-del`.
        Delete = "delete",
    }

    /// The properties of a delay policy: which messages between actors are held back. Not QEMU's.
    open struct MillpondChaosProperties {
        seed: Option<u64>,
        rules: Option<Vec<MillpondChaosRule>>,
    }

    /// One rule of a delay policy.
    open struct MillpondChaosRule {
        sender: Option<String>,
        receiver: Option<String>,
        kind: Option<String>,
        node: Option<String>,
        iothread: Option<String>,
        delay: Option<String>,
        burst: Option<String>,
        stall: Option<String>,
        slow_client: Option<String>,
        dying_client: Option<String>,
    }

    /// The properties of a throttle group: its limits together, or each by itself.
    open struct ThrottleGroupProperties {
        limits: Option<ThrottleLimits>,
        x_iops_total: Option<i64> ["unstable"],
        x_iops_total_max: Option<i64> ["unstable"],
        x_iops_total_max_length: Option<i64> ["unstable"],
        x_iops_read: Option<i64> ["unstable"],
        x_iops_read_max: Option<i64> ["unstable"],
        x_iops_read_max_length: Option<i64> ["unstable"],
        x_iops_write: Option<i64> ["unstable"],
        x_iops_write_max: Option<i64> ["unstable"],
        x_iops_write_max_length: Option<i64> ["unstable"],
        x_bps_total: Option<i64> ["unstable"],
        x_bps_total_max: Option<i64> ["unstable"],
        x_bps_total_max_length: Option<i64> ["unstable"],
        x_bps_read: Option<i64> ["unstable"],
        x_bps_read_max: Option<i64> ["unstable"],
        x_bps_read_max_length: Option<i64> ["unstable"],
        x_bps_write: Option<i64> ["unstable"],
        x_bps_write_max: Option<i64> ["unstable"],
        x_bps_write_max_length: Option<i64> ["unstable"],
        x_iops_size: Option<i64> ["unstable"],
    }

    /// The limits of a throttle group.
    open struct ThrottleLimits {
        iops_total: Option<i64>,
        iops_total_max: Option<i64>,
        iops_total_max_length: Option<i64>,
        iops_read: Option<i64>,
        iops_read_max: Option<i64>,
        iops_read_max_length: Option<i64>,
        iops_write: Option<i64>,
        iops_write_max: Option<i64>,
        iops_write_max_length: Option<i64>,
        bps_total: Option<i64>,
        bps_total_max: Option<i64>,
        bps_total_max_length: Option<i64>,
        bps_read: Option<i64>,
        bps_read_max: Option<i64>,
        bps_read_max_length: Option<i64>,
        bps_write: Option<i64>,
        bps_write_max: Option<i64>,
        bps_write_max_length: Option<i64>,
        iops_size: Option<i64>,
    }

    /// Makes an object.
    command ObjectAdd = "object-add" (ObjectOptions);

    /// Removes an object.
    command ObjectDel = "object-del" {
        /// The id of the object.
        id: String,
    };

    /// A property of an object or of a type, as it is listed.
    struct ObjectPropertyInfo {
        /// The name of the property.
        name: String,
        /// Its type; `child<TYPE>` for an object below this one.
        kind as "type": String,
        /// What it is for.
        description: Option<String>,
        /// Its value if none is set.
        default_value: Option<Value>,
    }

    /// Lists the properties of an object.
    command QomList = "qom-list" {
        /// Where the object is in the tree.
        path: String,
    } -> Vec<ObjectPropertyInfo>;

    /// Shows a property of an object.
    command QomGet = "qom-get" {
        /// Where the object is in the tree.
        path: String,
        /// The name of the property.
        property: String,
    } -> Value;

    /// A property of an object, and its value.
    struct ObjectPropertyValue {
        /// The name of the property.
        name: String,
        /// Its type; `child<TYPE>` for an object below this one.
        kind as "type": String,
        /// Its value, unless it cannot be read.
        value: Option<Value>,
    }

    /// The properties of one object.
    struct ObjectPropertiesValues {
        /// All of them, with their values.
        properties: Vec<ObjectPropertyValue>,
    }

    /// Shows all properties of several objects. QEMU has it since 10.1.
    command QomListGet = "qom-list-get" {
        /// Where the objects are in the tree.
        paths: Vec<String>,
    } -> Vec<ObjectPropertiesValues>;

    /// Changes a property of an object.
    command QomSet = "qom-set" {
        /// Where the object is in the tree.
        path: String,
        /// The name of the property.
        property: String,
        /// Its new value, of the property's type.
        value: Value,
    };

    /// A type of object, as it is listed.
    #[derive(Eq)]
    struct ObjectTypeInfo {
        /// The name of the type.
        name: String,
        /// It has no objects of its own.
        is_abstract as "abstract": Option<bool>,
        /// The type it is derived from.
        parent: Option<String>,
    }

    /// Lists the types of object.
    command QomListTypes = "qom-list-types" {
        /// Only those that are derived from this one.
        implements: Option<String>,
        /// Those as well that have no objects of their own.
        is_abstract as "abstract": Option<bool>,
    } -> Vec<ObjectTypeInfo>;

    /// Lists the properties of a type.
    command QomListProperties = "qom-list-properties" {
        /// The name of the type.
        typename: String,
    } -> Vec<ObjectPropertyInfo>;
}

impl ObjectOptions {
    /// The id that the object is to have.
    pub fn id(&self) -> &str {
        self.0.get("id").and_then(Value::as_str).unwrap_or_default()
    }
}
