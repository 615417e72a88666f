//! A chart of figures by size or number, both axes logarithmic, as a self-contained SVG.

use std::fmt::Write as _;

/// Where the curves end, and the legend begins.
const END: f64 = 710.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 84.0;
const TOP: f64 = 76.0;
const BOTTOM: f64 = 64.0;
/// Colours that people who see few of them can tell apart (Okabe and Ito).
const COLOURS: [&str; 9] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#8c6d31",
    "#999999",
];
/// Room for a letter, and for what stands before a name of the legend.
const LETTER: f64 = 7.4;
const LEGEND_LINE: f64 = 72.0;
/// Labels of sizes that fit next to each other.
const SIZE_LABELS_MAX: usize = 14;

/// A chart.
#[derive(Debug)]
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) subtitle: String,
    /// What the horizontal axis shows.
    pub(crate) across: &'static str,
    /// How a place on it is written.
    pub(crate) label: fn(usize) -> String,
    /// What the vertical axis shows.
    pub(crate) up: &'static str,
    pub(crate) curves: Vec<Curve>,
}

/// One line of a chart.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    pub(crate) name: String,
    /// Places across and figures, both above zero.
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) dashed: bool,
    /// Which colour it has: curves that belong together share one.
    pub(crate) colour: usize,
}

/// One axis: the logarithms it spans, and the pixels.
#[derive(Debug, Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let (low, high) = values
            .map(f64::log10)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        // A margin, and a span where there is only one value.
        let margin = (0.04 * (high - low)).max(0.08);
        Self {
            low: low - margin,
            high: high + margin,
            start,
            end,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.log10() - self.low) / (self.high - self.low);
        self.start + share * (self.end - self.start)
    }

    fn shows(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value.log10())
    }
}

impl Plot {
    /// The chart as the text of an SVG file.
    pub(crate) fn svg(&self) -> String {
        let points = || {
            let all = self.curves.iter().flat_map(|curve| &curve.points);
            all.copied().filter(|(x, y)| *x > 0.0 && *y > 0.0)
        };
        let x = Axis::over(points().map(|point| point.0), LEFT, END);
        let y = Axis::over(points().map(|point| point.1), HEIGHT - BOTTOM, TOP);
        let names = self.curves.iter().map(|curve| curve.name.chars().count());
        let width = END + LEGEND_LINE + LETTER * names.max().unwrap_or(0) as f64;
        let titles = [(&self.title, 10.0), (&self.subtitle, LETTER)];
        let titles = titles.map(|(title, letter)| LEFT + letter * title.chars().count() as f64);
        let width = titles.into_iter().fold(width, f64::max).ceil();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{HEIGHT}\" \
             viewBox=\"0 0 {width} {HEIGHT}\" font-family=\"Helvetica, Arial, sans-serif\" \
             font-size=\"13\" fill=\"#222\">\n\
             <rect width=\"{width}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
        );
        text(
            &mut svg,
            LEFT,
            30.0,
            "font-size=\"17\" font-weight=\"bold\"",
            &self.title,
        );
        text(&mut svg, LEFT, 52.0, "fill=\"#666\"", &self.subtitle);
        self.grid_across(&mut svg, x);
        self.grid_up(&mut svg, y);
        self.curves(&mut svg, x, y);
        self.legend(&mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    /// A line and a label for each size that was measured.
    fn grid_across(&self, svg: &mut String, x: Axis) {
        let all = self.curves.iter().flat_map(|curve| &curve.points);
        let mut sizes: Vec<usize> = all.map(|point| point.0 as usize).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let step = sizes.len().div_ceil(SIZE_LABELS_MAX).max(1);
        for size in sizes.iter().step_by(step) {
            let at = x.at(*size as f64);
            line(svg, [at, TOP, at, HEIGHT - BOTTOM], "#e4e4e4");
            let below = HEIGHT - BOTTOM + 20.0;
            text(
                svg,
                at,
                below,
                "text-anchor=\"middle\"",
                &(self.label)(*size),
            );
        }
        let middle = f64::midpoint(LEFT, END);
        text(
            svg,
            middle,
            HEIGHT - 18.0,
            "text-anchor=\"middle\"",
            self.across,
        );
    }

    /// A line for each of 1, 2 and 5 in each power of ten, labelled where there is room.
    fn grid_up(&self, svg: &mut String, y: Axis) {
        let few = y.high - y.low < 2.5;
        for power in y.low.floor() as i32..=y.high.ceil() as i32 {
            for digit in 1..10 {
                let value = f64::from(digit) * 10f64.powi(power);
                if !y.shows(value) {
                    continue;
                }
                let (at, major) = (y.at(value), digit == 1);
                let labelled = major || few && matches!(digit, 2 | 5);
                let colour = if major { "#bbb" } else { "#eee" };
                line(svg, [LEFT, at, END, at], colour);
                if labelled {
                    let value = number(value);
                    text(svg, LEFT - 8.0, at + 4.0, "text-anchor=\"end\"", &value);
                }
            }
        }
        let middle = f64::midpoint(TOP, HEIGHT - BOTTOM);
        let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 22 {middle})\"");
        text(svg, 22.0, middle, &turned, self.up);
        let corners = [
            [LEFT, TOP, LEFT, HEIGHT - BOTTOM],
            [LEFT, HEIGHT - BOTTOM, END, HEIGHT - BOTTOM],
        ];
        for ends in corners {
            line(svg, ends, "#222");
        }
    }

    fn curves(&self, svg: &mut String, x: Axis, y: Axis) {
        for curve in &self.curves {
            let (colour, dash) = style(curve);
            let points = curve.points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0);
            let places: Vec<(f64, f64)> =
                points.map(|point| (x.at(point.0), y.at(point.1))).collect();
            let path: Vec<String> = places
                .iter()
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            let path = path.join(" ");
            let _ = writeln!(
                svg,
                "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>"
            );
            for ((x, y), (bytes, figure)) in places.iter().zip(&curve.points) {
                let said = format!(
                    "{}: {} {}",
                    (self.label)(*bytes as usize),
                    number(*figure),
                    self.up
                );
                let name = escape(&curve.name);
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\">\
                     <title>{name}, {}</title></circle>",
                    escape(&said)
                );
            }
        }
    }

    fn legend(&self, svg: &mut String) {
        let left = END + 20.0;
        for (index, curve) in self.curves.iter().enumerate() {
            let (colour, dash) = style(curve);
            let at = TOP + 10.0 + 22.0 * index as f64;
            let end = left + 28.0;
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" y1=\"{at}\" x2=\"{end}\" y2=\"{at}\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>"
            );
            text(svg, left + 36.0, at + 4.0, "", &curve.name);
        }
    }
}

/// The colour of a curve, and its dashes.
fn style(curve: &Curve) -> (&'static str, &'static str) {
    let dash = if curve.dashed {
        " stroke-dasharray=\"7 4\""
    } else {
        ""
    };
    (COLOURS[curve.colour % COLOURS.len()], dash)
}

fn line(svg: &mut String, [x1, y1, x2, y2]: [f64; 4], colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, said: &str) {
    let said = escape(said);
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{said}</text>"
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A figure with three digits that mean something.
fn number(value: f64) -> String {
    let places = (2 - value.log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.places$}");
    if text.contains('.') {
        let text = text.trim_end_matches('0');
        return text.trim_end_matches('.').to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let texts = [0.001, 0.2, 0.0714, 1.0, 12.34, 1500.0, 1e6].map(number);
        assert_eq!(
            texts,
            ["0.001", "0.2", "0.0714", "1", "12.3", "1500", "1000000"]
        );
    }

    #[test]
    fn a_chart_of_nothing_and_one_of_one_point_have_finite_numbers() {
        let plot = |points: Vec<(f64, f64)>| Plot {
            title: "a < b & \"c\"".to_owned(),
            subtitle: String::new(),
            across: "size",
            label: |size| size.to_string(),
            up: "us",
            curves: vec![Curve {
                name: "x".to_owned(),
                points,
                dashed: true,
                colour: 0,
            }],
        };
        for points in [vec![], vec![(8.0, 0.1)], vec![(8.0, 0.0)]] {
            let svg = plot(points).svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.contains("a &lt; b &amp; &quot;c&quot;"));
        }
    }

    #[test]
    fn larger_figures_are_higher_and_larger_sizes_further_right() {
        let values = || [1.0, 10.0, 100.0].into_iter();
        let (x, y) = (
            Axis::over(values(), 0.0, 10.0),
            Axis::over(values(), 10.0, 0.0),
        );
        assert!(x.at(1.0) < x.at(10.0) && x.at(10.0) < x.at(100.0));
        assert!(y.at(1.0) > y.at(10.0) && y.at(10.0) > y.at(100.0));
        assert!((x.at(10.0) - 5.0).abs() < 1e-9);
    }
}
