//! A load as a picture: latencies over time, with what happened to the graph meanwhile.

use std::path::Path;

use plotters::prelude::*;

use super::report::Report;
use super::timeline::Slice;
use crate::Outcome;

const SIZE: (u32, u32) = (1200, 600);

/// The lines, from the lowest to the highest: what they show, the percentile, and the colour.
const LINES: [(&str, f64, RGBColor); 3] = [
    ("p50", 50.0, RGBColor(31, 119, 180)),
    ("p99", 99.0, RGBColor(255, 127, 14)),
    ("max", 100.0, RGBColor(214, 39, 40)),
];

const MARK: RGBColor = RGBColor(44, 160, 44);

/// Labels of marks are written at so many heights in turn, for those of neighbours not to cover each other.
const HEIGHTS: usize = 6;

/// Writes the picture of a report as SVG.
///
/// # Errors
/// Nothing was answered in the time that counts, or the file cannot be written.
pub fn draw(report: &Report, path: &Path) -> Outcome<()> {
    let timeline = &report.timeline;
    let width = timeline.width().as_secs_f64();
    let filled = || {
        let slices = timeline.slices().iter().enumerate();
        slices.filter(|(_, slice)| !slice.latencies.is_empty())
    };
    let values = |percentile: f64| filled().map(move |(_, slice)| positive(slice, percentile));
    let lowest = values(50.0).fold(f64::INFINITY, f64::min);
    let highest = values(100.0).fold(0.0, f64::max);
    if !lowest.is_finite() {
        return Err("there is nothing to plot: no request was answered".into());
    }
    let until = width * timeline.slices().len() as f64;
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let spec = &report.spec;
    let title = format!(
        "{} of {}, {} x {} in flight: {:.0} requests/s",
        spec.mix,
        spec.sizes,
        spec.connections,
        spec.depth,
        report.rate()
    );
    let (bottom, top) = (lowest / 1.5, highest * 4.0);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..until, (bottom..top).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc("latency, us")
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    for (index, mark) in timeline.marks().iter().enumerate() {
        let (from, end) = (mark.from.as_secs_f64(), mark.until.as_secs_f64());
        let height = top / 1.1_f64.powi(2 + 2 * (index % HEIGHTS) as i32);
        chart.draw_series([
            Rectangle::new([(from, bottom), (end, top)], MARK.mix(0.3).filled()),
            Rectangle::new([(from, bottom), (from, top)], MARK.filled()),
        ])?;
        let label = Text::new(
            mark.label.clone(),
            (from, height),
            ("sans-serif", 13).into_font().color(&MARK),
        );
        chart.draw_series([label])?;
    }
    for (name, percentile, colour) in LINES {
        let points =
            filled().map(|(index, slice)| ((index as f64 + 0.5) * width, positive(slice, percentile)));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(1)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    area.present()?;
    Ok(())
}

/// A percentile that has a place on a logarithmic axis.
fn positive(slice: &Slice, percentile: f64) -> f64 {
    slice.microseconds(percentile).max(0.001)
}
