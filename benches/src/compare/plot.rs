//! Line charts with logarithmic axes, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::Outcome;

/// A named line.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What the legend says.
    pub name: String,
    /// Where it goes, left to right.
    pub points: Vec<(f64, f64)>,
}

/// What stands around the lines.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// Above the chart.
    pub title: &'a str,
    /// At the horizontal axis.
    pub across: &'a str,
    /// At the vertical axis.
    pub up: &'a str,
}

/// Room around the points, as a factor, so that none lies on the frame.
const MARGIN: f64 = 1.3;

/// Draws a chart into a file. Both axes are logarithmic, so that only points above zero show.
pub fn draw(path: &Path, labels: Labels<'_>, series: &[Series]) -> Outcome<()> {
    let points = || series.iter().flat_map(|line| &line.points).copied();
    let across = bounds(points().map(|point| point.0)).ok_or("nothing to plot")?;
    let up = bounds(points().map(|point| point.1)).ok_or("nothing to plot")?;
    let area = SVGBackend::new(path, (860, 500)).into_drawing_area();
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    area.fill(&WHITE).map_err(|error| fail(&error))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(labels.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d((across.0..across.1).log_scale(), (up.0..up.1).log_scale())
        .map_err(|error| fail(&error))?;
    chart
        .configure_mesh()
        .x_desc(labels.across)
        .y_desc(labels.up)
        .draw()
        .map_err(|error| fail(&error))?;
    for (index, line) in series.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let shown = line.points.iter().copied().filter(|(x, y)| *x > 0.0 && *y > 0.0);
        chart
            .draw_series(LineSeries::new(shown, colour.stroke_width(2)).point_size(3))
            .map_err(|error| fail(&error))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()
        .map_err(|error| fail(&error))?;
    area.present().map_err(|error| fail(&error).into())
}

/// The least and the greatest of what is above zero, with room around them.
fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let mut values = values.filter(|value| *value > 0.0 && value.is_finite());
    let first = values.next()?;
    let (least, most) = values.fold((first, first), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    Some((least / MARGIN, most * MARGIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axes_hold_all_points_above_zero() {
        let (least, most) = bounds([3.0, 0.0, 100.0, f64::NAN].into_iter()).unwrap();
        assert!(least < 3.0 && least > 1.0 && most > 100.0);
        assert_eq!(bounds([0.0].into_iter()), None);
    }

    #[test]
    fn a_chart_names_its_lines_and_axes() {
        let path = std::env::temp_dir().join(format!("millpond-plot-{}.svg", std::process::id()));
        let labels = Labels {
            title: "drains",
            across: "in flight",
            up: "microseconds",
        };
        let series = [Series {
            name: "p50 & more".to_owned(),
            points: vec![(1.0, 10.0), (128.0, 90.0)],
        }];
        draw(&path, labels, &series).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for part in [
            "<svg",
            "drains",
            "in flight",
            "microseconds",
            "p50 &amp; more",
            "polyline",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
