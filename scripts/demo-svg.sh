#!/bin/sh
# Turns terminal text on standard input into an SVG on standard output:
#   sh scripts/demo.sh 2>&1 | sh scripts/demo-svg.sh > docs/img/demo.svg
# It knows the bold and dim of demo.sh and drops every other escape. Lines past
# 96 characters are cut with an ellipsis.
set -eu
esc=$(printf '\033')
# \001 and \002 stand for bold and dim from here on, \003 for their end.
sed -e "s/$esc\[1m/$(printf '\001')/g" -e "s/$esc\[2m/$(printf '\002')/g" \
	-e "s/$esc\[0m/$(printf '\003')/g" -e "s/$esc\[[0-9;?]*[A-Za-z]//g" \
	-e "s/$(printf '\r')//g" -e "s/$(printf '\t')/    /g" \
	-e 's/&/\&amp;/g' -e 's/</\&lt;/g' -e 's/>/\&gt;/g' |
	LC_ALL=C awk '
# cut shortens a line to n characters: UTF-8 sequences and entities count as one.
function cut(s, n,   out, i, c, seen) {
	for (i = 1; i <= length(s); i++) {
		c = substr(s, i, 1)
		if (c ~ /[\200-\277]/) { out = out c; continue } # inside a sequence
		if (c ~ /[\001-\003]/) { out = out c; continue } # takes no room
		if (seen == n) return out "\342\200\246"
		if (c == "&" && match(substr(s, i), /^&[a-z]+;/)) {
			c = substr(s, i, RLENGTH)
			i += RLENGTH - 1
		}
		out = out c
		seen++
	}
	return out
}
BEGIN { columns = 96; size = 13; step = 18; margin = 16 }
{ line[NR] = cut($0, columns) }
END {
	first = 1
	while (first < NR && line[first] == "") first++
	width = int(columns * size * 0.602) + 2 * margin
	printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" role=\"img\" aria-label=\"What make demo prints\">\n", width, (NR - first + 1) * step + 2 * margin, width
	print "<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#16181d\"/>"
	printf "<g font-family=\"ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace\" font-size=\"%d\" fill=\"#d7dae0\">\n", size
	for (i = first; i <= NR; i++) {
		s = line[i]
		open = gsub(/\001/, "<tspan font-weight=\"bold\" fill=\"#ffffff\">", s) + gsub(/\002/, "<tspan fill=\"#8b93a1\">", s)
		shut = gsub(/\003/, "</tspan>", s)
		while (shut < open) { s = s "</tspan>"; shut++ }
		if (s != "") printf "<text x=\"%d\" y=\"%d\" xml:space=\"preserve\">%s</text>\n", margin, margin + (i - first + 1) * step - 4, s
	}
	print "</g>\n</svg>"
}'
