//! What `query-qmp-schema` answers, in its own terms.

use crate::qapi::row::qapi;
use serde_json::Value;

qapi! {
    /// An entry of the schema: a type, a command or an event.
    union SchemaInfo {
        /// Its name; a number for a type whose name nobody needs.
        name: String,
        @kind: SchemaInfoKind,
        /// Features of the entry, such as `unstable`.
        features: Option<Vec<String>>,
    }

    /// What an entry of the schema describes.
    enum SchemaMetaType {
        /// A type that JSON has by itself.
        Builtin = "builtin",
        /// Words to choose from.
        Enum = "enum",
        /// A list of values of one type.
        Array = "array",
        /// An object with known members.
        Object = "object",
        /// One of several types, told apart by their JSON type.
        Alternate = "alternate",
        /// A command that a client can send.
        Command = "command",
        /// An event that clients are sent.
        Event = "event",
    }

    /// What an entry of the schema says of each kind.
    branches SchemaInfoKind by "meta-type": SchemaMetaType {
        /// A type that JSON has by itself.
        Builtin = "builtin": SchemaInfoBuiltin,
        /// Words to choose from.
        Enum = "enum": SchemaInfoEnum,
        /// A list of values of one type.
        Array = "array": SchemaInfoArray,
        /// An object with known members.
        Object = "object": SchemaInfoObject,
        /// One of several types, told apart by their JSON type.
        Alternate = "alternate": SchemaInfoAlternate,
        /// A command that a client can send.
        Command = "command": SchemaInfoCommand,
        /// An event that clients are sent.
        Event = "event": SchemaInfoEvent,
    }

    /// A type that JSON has by itself.
    struct SchemaInfoBuiltin {
        /// What its values are in JSON.
        json_type: JSONType,
    }

    /// What a value can be in JSON.
    enum JSONType {
        /// Text in double quotes.
        String = "string",
        /// A number, with or without a fraction.
        Number = "number",
        /// A number without a fraction.
        Int = "int",
        /// A truth value: true or false.
        Boolean = "boolean",
        /// The value null alone.
        Null = "null",
        /// An object with its members.
        Object = "object",
        /// A list of any length.
        Array = "array",
        /// Any of these at all.
        Value = "value",
    }

    /// Words to choose from.
    struct SchemaInfoEnum {
        /// The words with their features.
        members: Vec<SchemaInfoEnumMember>,
        /// The words alone, as older clients read them.
        values: Vec<String> ["deprecated"],
    }

    /// A word of an enumeration.
    struct SchemaInfoEnumMember {
        /// The word on the wire.
        name: String,
        /// Features of the word.
        features: Option<Vec<String>>,
    }

    /// A list of values of one type.
    struct SchemaInfoArray {
        /// The name of that type.
        element_type: String,
    }

    /// An object with known members.
    struct SchemaInfoObject {
        /// What it always has.
        members: Vec<SchemaInfoObjectMember>,
        /// The member that selects further ones.
        tag: Option<String>,
        /// The further members by the tag's value.
        variants: Option<Vec<SchemaInfoObjectVariant>>,
    }

    /// A member of an object.
    struct SchemaInfoObjectMember {
        /// The member's name on the wire.
        name: String,
        /// The name of its type.
        kind as "type": String,
        /// Null if the member may be left out.
        default: Option<Value>,
        /// Features of the member.
        features: Option<Vec<String>>,
    }

    /// The further members for one value of a tag.
    struct SchemaInfoObjectVariant {
        /// The tag's value on the wire.
        case: String,
        /// The name of the type with the further members.
        kind as "type": String,
    }

    /// One of several types, told apart by their JSON type.
    struct SchemaInfoAlternate {
        /// The types that it can be.
        members: Vec<SchemaInfoAlternateMember>,
    }

    /// A type that an alternate can be.
    struct SchemaInfoAlternateMember {
        /// The name of the type.
        kind as "type": String,
    }

    /// A command that a client can send.
    struct SchemaInfoCommand {
        /// The name of its arguments' type.
        arg_type: String,
        /// The name of its answer's type.
        ret_type: String,
        /// It may overtake other commands.
        allow_oob: Option<bool>,
    }

    /// An event that clients are sent.
    struct SchemaInfoEvent {
        /// The name of its data's type.
        arg_type: String,
    }
}
