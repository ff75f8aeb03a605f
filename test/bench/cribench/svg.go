package main

import (
	"fmt"
	"math"
	"strings"
)

// bar is one bar: a median with the spread to a percentile.
type bar struct {
	name       string
	value, top float64
}

// line is one curve, with the spread of each point; low and high may be nil.
type line struct {
	name      string
	x, y      []float64
	low, high []float64
}

var palette = []string{"#0b6e4f", "#3c9d7a", "#8cc9b0", "#5b7aa6", "#a3b7d1", "#c8553d", "#e09a86", "#7d5ba6", "#b7a3d1"}

const (
	style = `<style>text{font:12px sans-serif;fill:#333}.t{font-size:15px;font-weight:bold}.s{fill:#777}.g{stroke:#ddd}@media(prefers-color-scheme:dark){text{fill:#ddd}.s{fill:#999}.g{stroke:#444}}</style>`
	width = 760
)

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}

// bars draws horizontal bars on a logarithmic scale: the runtimes differ by powers of ten.
func bars(title, unit string, list []bar) string {
	const left, right, high, gap = 210, 120, 20, 8
	low, most := math.Inf(1), 0.0
	for _, b := range list {
		low, most = min(low, b.value), max(most, b.top, b.value)
	}
	low = math.Pow(10, math.Floor(math.Log10(max(low, 1e-3)/1.5)))
	x := func(v float64) float64 {
		return left + (width-left-right)*math.Log(max(v, low)/low)/math.Log(most/low)
	}
	height := 60 + len(list)*(high+gap)
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" role="img">%s`+"\n", width, height, width, style)
	fmt.Fprintf(&s, `<text class="t" x="8" y="20">%s</text><text class="s" x="8" y="37">%s; bar: p50, whisker: to p95; logarithmic</text>`+"\n", escape(title), escape(unit))
	for v := low; v <= most; v *= 10 {
		fmt.Fprintf(&s, `<line class="g" x1="%.1f" x2="%.1f" y1="44" y2="%d"/><text class="s" x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n", x(v), x(v), height-14, x(v), height-2, v)
	}
	for i, b := range list {
		y := 48 + i*(high+gap)
		fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`,
			left-8, y+14, escape(b.name), left, y, max(1, x(b.value)-left), high, palette[i%len(palette)])
		if b.top > b.value {
			fmt.Fprintf(&s, `<path d="M%.1f %dH%.1fm0 -5v10" stroke="#555" fill="none"/>`, x(b.value), y+high/2, x(b.top))
		}
		fmt.Fprintf(&s, `<text x="%.1f" y="%d">%s</text>`+"\n", x(max(b.value, b.top))+6, y+14, figure(b.value))
	}
	return s.String() + "</svg>\n"
}

// curves draws lines; y is logarithmic.
func curves(title, xUnit, yUnit string, list []line) string {
	const left, right, top, bottom, height = 60, 220, 50, 40, 380
	xMost, low, most := 1.0, math.Inf(1), 0.0
	for _, l := range list {
		for i := range l.x {
			xMost, low, most = max(xMost, l.x[i]), min(low, l.y[i]), max(most, l.y[i])
			if l.low != nil {
				low, most = min(low, l.low[i]), max(most, l.high[i])
			}
		}
	}
	low, most = math.Pow(10, math.Floor(math.Log10(max(low, 1e-3)))), math.Pow(10, math.Ceil(math.Log10(max(most, 1e-2))))
	x := func(v float64) float64 { return left + (width-left-right)*v/xMost }
	y := func(v float64) float64 {
		return height - bottom - (height-top-bottom)*math.Log(max(v, low)/low)/math.Log(most/low)
	}
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" role="img">%s`+"\n", width, height, width, style)
	fmt.Fprintf(&s, `<text class="t" x="8" y="20">%s</text><text class="s" x="8" y="37">%s; logarithmic</text>`+"\n", escape(title), escape(yUnit))
	for v := low; v <= most*1.01; v *= 10 {
		fmt.Fprintf(&s, `<line class="g" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text class="s" x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n", left, width-right, y(v), y(v), left-6, y(v)+4, v)
	}
	seen := map[float64]bool{}
	for _, l := range list {
		for _, v := range l.x {
			if !seen[v] {
				fmt.Fprintf(&s, `<text class="s" x="%.1f" y="%d" text-anchor="middle">%g</text>`, x(v), height-bottom+16, v)
			}
			seen[v] = true
		}
	}
	fmt.Fprintf(&s, `<text class="s" x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (left+width-right)/2, height-6, escape(xUnit))
	for i, l := range list {
		var points []string
		for k := range l.x {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(l.x[k]), y(l.y[k])))
			if l.low != nil {
				fmt.Fprintf(&s, `<path d="M%.1f %.1fV%.1f" stroke="%s" stroke-width="1.5" fill="none"/>`, x(l.x[k]), y(l.low[k]), y(l.high[k]), palette[i%len(palette)])
			}
			fmt.Fprintf(&s, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x(l.x[k]), y(l.y[k]), palette[i%len(palette)])
		}
		fmt.Fprintf(&s, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.Join(points, " "), palette[i%len(palette)])
		at := top + 10 + i*20
		fmt.Fprintf(&s, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n", width-right+16, at, palette[i%len(palette)], width-right+34, at+11, escape(l.name))
	}
	return s.String() + "</svg>\n"
}
