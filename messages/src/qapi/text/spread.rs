//! JSON of one line, spread over many for people to read.

/// Spreads JSON of one line over many.
pub fn spread(compact: &str) -> String {
    let mut out = String::with_capacity(compact.len() * 2);
    let (mut depth, mut rest) = (0_usize, compact);
    while let Some(at) = rest.find(['"', '{', '[', '}', ']', ',']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let (sign, after) = from.split_at(1);
        rest = after;
        match sign {
            "\"" => {
                let (text, after) = rest.split_at(end_of_string(rest));
                out.push_str(sign);
                out.push_str(text);
                rest = after;
            }
            "{" | "[" => {
                out.push_str(sign);
                depth += 1;
                if !rest.starts_with(['}', ']']) {
                    new_line(&mut out, depth);
                }
            }
            "," => {
                out.push_str(sign);
                new_line(&mut out, depth);
                rest = rest.trim_start();
            }
            _ => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push_str(sign);
            }
        }
    }
    out.push_str(rest);
    out
}

/// Behind the quotation mark that ends a string, or the end of the text.
fn end_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 1)
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    for _ in 0..depth {
        out.push_str("    ");
    }
}
