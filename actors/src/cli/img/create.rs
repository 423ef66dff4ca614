//! `millpond img create`: new images, alone or on top of others.

use super::options::{cut, explain};
use crate::cli::getopt::Row;
use crate::cli::tool::{Failure, LARGEST, Program, Tool, number, print};
use crate::image::{self, NewImage};
use millpond_graph::new_image::known::{self, Known};
use millpond_graph::new_image::{asks_for_help, is_option_list, protocol_of};
use millpond_messages::OpenFlags;
use millpond_messages::graph::ListDrivers;
use std::process::ExitCode;

const HELP: &str = "\
Usage: {program} create [-f FORMAT] [-o OPTIONS] [-b BASE [-F FORMAT]] [-u] [-q]
           [--object OBJECT] IMAGE [SIZE]

Makes an image. What was in the file IMAGE is gone. SIZE is the length of its disk in bytes;
suffixes k, M, G, T, P and E are powers of 1024. An image on top of another is as long as that,
unless SIZE is given.

Options:
  -f, --format FORMAT     The format of the image: raw, unless said otherwise
  -o, --options OPTIONS   What the format leaves to its users: name=value,...; '-o help' lists
                          what there is
  -b, --backing BASE      The image that shows where the new one has nothing of its own
  -F, -B, --backing-format FORMAT
                          The format of BASE
  -u, --backing-unsafe    Do not open BASE: it need not be there
      --object OBJECT     An object that the image needs, such as a secret
  -q, --quiet             Say nothing of success
  -h, --help              Print this
";

#[derive(Clone, Copy)]
enum Name {
    Backing,
    BackingFormat,
    Format,
    Help,
    Object,
    Options,
    Quiet,
    Unsafe,
}

const OPTIONS: &[Row<Name>] = &[
    Row::flag("help", Some('h'), Name::Help),
    Row::flag("quiet", Some('q'), Name::Quiet),
    Row::value("object", None, Name::Object),
    Row::value("format", Some('f'), Name::Format),
    Row::value("backing", Some('b'), Name::Backing),
    Row::value("backing-format", Some('F'), Name::BackingFormat),
    Row::value("", Some('B'), Name::BackingFormat),
    Row::flag("backing-unsafe", Some('u'), Name::Unsafe),
    Row::value("options", Some('o'), Name::Options),
];

/// Makes the image that `arguments` describe.
pub(super) fn run(program: Program<'_>, arguments: &[String]) -> Result<ExitCode, Failure> {
    let usage = |text: String| Failure::usage(program, "create", text);
    let mut image = NewImage {
        format: "raw".to_owned(),
        ..NewImage::default()
    };
    let (mut objects, mut words) = (Vec::new(), Vec::new());
    for given in cut(program, "create", OPTIONS, arguments) {
        let (option, value) = given?;
        match option {
            None => words.push(value),
            Some(Name::Help) => return Ok(explain(program, HELP)),
            Some(Name::Backing) => image.base = Some(value),
            Some(Name::BackingFormat) => image.base_format = Some(value),
            Some(Name::Format) => image.format = value,
            Some(Name::Object) => objects.push(value),
            Some(Name::Options) => add_options(&mut image.options, &value)?,
            Some(Name::Quiet) => image.quiet = true,
            Some(Name::Unsafe) => image.flags |= OpenFlags::NO_BACKING,
        }
    }
    let mut words = words.into_iter();
    let filename = words.next();
    if asks_for_help(&image.options) {
        return Ok(Tool::run(program, &objects, async |tool| {
            describe(tool, &image.format, filename.as_deref()).await
        }));
    }
    image.filename = filename.ok_or_else(|| usage("Expecting image file name".to_owned()))?;
    let size = words.next();
    image.size = size
        .map(|size| number("image size", &size, 0..=LARGEST))
        .transpose()?;
    if let Some(extra) = words.next() {
        return Err(usage(format!("Unexpected argument: {extra}")));
    }
    Ok(Tool::run(program, &objects, async |tool| {
        let mut told = Vec::new();
        let name = image.filename.clone();
        let made = image::create(tool.graph(), image, &mut told).await;
        told.iter().for_each(|line| print(&format!("{line}\n")));
        made.map_err(|error| Failure::from(error).within(&name))?;
        Ok(ExitCode::SUCCESS)
    }))
}

/// Adds what one `-o` says to what those before it said.
///
/// # Errors
/// It is no list of options.
pub(super) fn add_options(options: &mut String, more: &str) -> Result<(), Failure> {
    if !is_option_list(more) {
        return Err(Failure::new(format!("Invalid option list: {more}")));
    }
    if !options.is_empty() {
        options.push(',');
    }
    options.push_str(more);
    Ok(())
}

/// Prints the options of a format and, where the file's name is known, of its protocol.
///
/// # Errors
/// There is no such format or protocol, or it makes no images.
pub(super) async fn describe(
    tool: &Tool<'_>,
    format: &str,
    filename: Option<&str>,
) -> Result<ExitCode, Failure> {
    let drivers = tool.graph().ask(ListDrivers { read_only: false }).await?;
    image::maker(&drivers, format, "file format", "Format driver")?;
    let of_format: Vec<Known> = known::of_format(format).to_vec();
    let Some(filename) = filename else {
        print(&format!(
            "Supported {format} options:\n{}\nThe protocol level may support further options.\nSpecify the target filename \
             to include those options.\n",
            known::help(&of_format)
        ));
        return Ok(ExitCode::SUCCESS);
    };
    let (protocol, _) = protocol_of(filename);
    image::maker(&drivers, protocol, "protocol", "Protocol driver")?;
    let options = known::joined(&of_format, known::of_protocol(protocol));
    print(&format!("Supported options:\n{}", known::help(&options)));
    Ok(ExitCode::SUCCESS)
}
