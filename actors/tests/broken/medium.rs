//! The driver as a device with a tray and SCSI commands, asked through what is above it.

use millpond_messages::MediumOrder;
use millpond_messages::error::errno::EIO;
use millpond_messages::graph::{IsInserted, IsScsiGeneric};
use serde_json::json;

use super::driver::Entry;
use super::rows::{Ends, ONCE, leave, row};
use super::{on_stage, options};

#[test]
fn the_device_below_is_asked_for_its_medium_and_sent_commands() {
    on_stage(|stage| async move {
        let nodes = row(Entry::Read, ONCE, Ends::Failing, |_| async { Ok(()) });
        let scene = stage.scene(&nodes).await;
        let above = [
            json!({"driver": "raw", "node-name": "whole", "file": "f"}),
            json!({"driver": "raw", "node-name": "part", "file": "f", "offset": 512, "size": 512}),
            json!({"driver": "copy-on-read", "node-name": "filter", "file": "f"}),
        ];
        for node in &above {
            stage
                .graph
                .add_node(options(node.clone()))
                .await
                .expect("it opens");
        }
        let is_inserted = async |node: &str| {
            let node_name = node.to_owned();
            let told = stage.graph.ask(IsInserted { node_name }).await;
            told.expect("there is such a node")
        };
        let is_generic = async |node: &str| {
            let node_name = node.to_owned();
            let told = stage.graph.ask(IsScsiGeneric { node_name }).await;
            told.expect("there is such a node")
        };
        for node in ["f", "whole", "part", "filter"] {
            assert!(is_inserted(node).await, "{node}");
            assert!(is_generic(node).await, "{node}");
        }
        scene.change_medium(MediumOrder::Eject).await.expect("it opens");
        for node in ["f", "whole", "part", "filter"] {
            assert!(!is_inserted(node).await, "{node}");
        }
        assert!(is_inserted("base").await, "it has none that could be taken out");
        assert!(!is_generic("base").await);
        scene.change_medium(MediumOrder::Load).await.expect("it closes");
        assert!(is_inserted("filter").await);
        let locked = scene.change_medium(MediumOrder::Lock).await;
        assert_eq!(locked.expect_err("it has no lock").errno(), EIO);
        for node in ["f", "whole"] {
            let answer = scene.send_scsi(node).await.expect("it takes commands");
            assert_eq!((answer.status, answer.sense), (2, vec![0; 6]), "{node}");
        }
        for node in ["part", "filter", "base"] {
            let refused = scene.send_scsi(node).await.expect_err(node);
            let told = "The command could not be sent: Operation not supported";
            assert_eq!(refused.to_string(), told, "{node}");
        }
        for node in ["whole", "part", "filter"] {
            stage.graph.delete_node(node).await.expect("nobody uses it");
        }
        leave(&scene).await.expect("nobody uses it");
        stage.graph.delete_node("f-file").await.expect("nobody uses it");
    });
}
