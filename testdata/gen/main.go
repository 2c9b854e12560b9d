// Command gen writes conversation.txt: 5,000 lines as people may paste them
// into a chat, for tests that carry a real text through the whole house. It is
// deterministic: run `go run ./testdata/gen > testdata/conversation.txt` in the
// root of the module and nothing changes.
package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
)

const (
	lines = 5000
	seed  = 20260101
	// longBytes is the size of the longest lines: more than six of the pieces
	// that a client cuts a text into.
	longBytes = 100 << 10
)

// scripts are words of the everyday, script by script.
func scripts() [][]string {
	return [][]string{
		strings.Fields("hello garden tomorrow bicycle kettle window Straße façade coöperate naïve Łódź smörgåsbord señor ça où être"),
		strings.Fields("καλημέρα θάλασσα ψωμί αύριο ποδήλατο ήλιος Ἀθῆναι σήμερα"),
		strings.Fields("привет завтра велосипед чайник окно щётка объём Київ їжа"),
		strings.Fields("مرحبا غدا بيت قهوة شمس مدينة لا٢٠٢٦ السَّلَامُ"),
		strings.Fields("שלום מחר בית קפה שמש שָׁלוֹם ירושלים"),
		strings.Fields("नमस्ते कल घर चाय सूरज क्षत्रिय हिन्दी श्री"),
		strings.Fields("你好 明天 自行车 茶壶 窗户 今日は ありがとう カタカナ 東京 𠮷野家"),
		strings.Fields("안녕하세요 내일 자전거 주전자 창문 각"),
		strings.Fields("สวัสดี พรุ่งนี้ บ้าน น้ำ กาแฟ ภาษาไทย"),
		strings.Fields("👋 🎉 👨‍👩‍👧‍👦 🏳️‍🌈 👩🏽‍🚀 🇬🇷 1️⃣ ❤️‍🔥 🧑🏿‍🤝‍🧑🏻"),
		strings.Fields("é̂ a̧̎ ñ̃ Z̤͔ͧ̑̓ä͖̭̈̇ ō̈ q̣̇"),
	}
}

func main() {
	out := bufio.NewWriter(os.Stdout)
	random := rand.New(rand.NewPCG(seed, seed))
	words := scripts()
	for n := range lines {
		fmt.Fprintln(out, line(random, words, n))
	}
	if err := out.Flush(); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// line makes the n-th line.
func line(random *rand.Rand, words [][]string, n int) string {
	switch {
	case n == 1000, n == 3000: // one very long line of words, one without a space
		return long(random, words, n == 1000)
	case n%500 == 250:
		return sentence(random, words, 700)
	case n%17 == 5:
		return ""
	case n%41 == 7:
		return "\t" + sentence(random, words, 3) + "  \t " // blanks that a careless program trims
	case n%97 == 11:
		return "..\x00\x1b[31m\r\u2028\ufeff end" // what a terminal or a careless reader chokes on
	}
	return sentence(random, words, 2+random.IntN(14))
}

// sentence joins words, mostly of one script.
func sentence(random *rand.Rand, words [][]string, count int) string {
	script := random.IntN(len(words))
	picked := make([]string, count)
	for i := range picked {
		if random.IntN(8) == 0 {
			script = random.IntN(len(words))
		}
		picked[i] = words[script][random.IntN(len(words[script]))]
	}
	return strings.Join(picked, " ")
}

func long(random *rand.Rand, words [][]string, spaces bool) string {
	var b strings.Builder
	for b.Len() < longBytes-64 {
		b.WriteString(sentence(random, words, 1))
		if spaces {
			b.WriteByte(' ')
		}
	}
	return b.String()
}
