// Command protoc-gen-qpc is the protobuf plugin that turns the services in
// protos/ into Go: the method table, one server interface and one client stub
// for each service, and the constants for statuses, error codes and events.
// It also writes docs/methods.md, so that the page and the table are one thing.
//
// buf runs it (see protos/buf.gen.yaml); nobody else needs to.
package main

import (
	"fmt"
	"sort"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Extension numbers and fields, as protos/qpc/v1/options.proto has them. They
// are read from the raw options, since the generator runs before the Go code
// of that file exists.
const (
	methodExtension = 50100
	statusExtension = 50101

	methodFieldID         = 1
	methodFieldAccess     = 2
	methodFieldDeadline   = 3
	methodFieldMaxRequest = 4
	methodFieldErrors     = 5
	methodFieldLimits     = 6
)

const (
	defaultDeadlineSecs    = 30
	defaultMaxRequestBytes = 4 << 20
)

var accessNames = map[uint64]string{1: "public", 2: "session", 3: "admin", 4: "peer", 5: "local"}

// method is one row of the table.
type method struct {
	*protogen.Method
	id, access, deadlineSecs, maxRequest uint64
	idempotent                           bool
	errors                               []uint64 // numbers of codes
	limits                               string
}

func main() {
	protogen.Options{}.Run(func(plugin *protogen.Plugin) error {
		table, err := collect(plugin)
		if err != nil {
			return err
		}
		writeMethods(plugin, table)
		writeCodes(plugin)
		writeServices(plugin, table)
		return writeDocs(plugin, table)
	})
}

// collect reads every service and refuses a method without an id or an access
// rule, and two methods with one id.
func collect(plugin *protogen.Plugin) ([]method, error) {
	var table []method
	seen := map[uint64]string{}
	for _, file := range plugin.Files {
		if !file.Generate {
			continue
		}
		for _, service := range file.Services {
			for _, m := range service.Methods {
				row := method{Method: m, deadlineSecs: defaultDeadlineSecs, maxRequest: defaultMaxRequestBytes}
				options := m.Desc.Options().(*descriptorpb.MethodOptions)
				row.idempotent = options.GetIdempotencyLevel() != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
				raw := extension(options, methodExtension)
				fields := varints(raw)
				row.errors, row.limits = packed(bytesField(raw, methodFieldErrors)), string(bytesField(raw, methodFieldLimits))
				row.id, row.access = fields[methodFieldID], fields[methodFieldAccess]
				if v := fields[methodFieldDeadline]; v != 0 {
					row.deadlineSecs = v
				}
				if v := fields[methodFieldMaxRequest]; v != 0 {
					row.maxRequest = v
				}
				switch {
				case row.id == 0 || row.id > 0xffff:
					return nil, fmt.Errorf("%s: id %d is not a method id: give one from 1 to 65535 in (qpc.v1.method)", m.Desc.FullName(), row.id)
				case accessNames[row.access] == "":
					return nil, fmt.Errorf("%s: give an access rule in (qpc.v1.method)", m.Desc.FullName())
				case seen[row.id] != "":
					return nil, fmt.Errorf("%s: id %d belongs to %s", m.Desc.FullName(), row.id, seen[row.id])
				}
				seen[row.id] = string(m.Desc.FullName())
				table = append(table, row)
			}
		}
	}
	sort.Slice(table, func(i, j int) bool { return table[i].id < table[j].id })
	return table, nil
}

// extension returns the bytes of one length-delimited or varint extension in
// the options, or nil.
func extension(options proto.Message, number protowire.Number) []byte {
	raw, err := proto.Marshal(options)
	if err != nil {
		return nil
	}
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return nil
		}
		size := protowire.ConsumeFieldValue(num, typ, raw[n:])
		if size < 0 {
			return nil
		}
		value := raw[n : n+size]
		raw = raw[n+size:]
		if num != number {
			continue
		}
		if typ == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(value)
		}
		return value
	}
	return nil
}

// varints returns the fields of a message that are varints.
func varints(raw []byte) map[protowire.Number]uint64 {
	fields := map[protowire.Number]uint64{}
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return fields
		}
		size := protowire.ConsumeFieldValue(num, typ, raw[n:])
		if size < 0 {
			return fields
		}
		if typ == protowire.VarintType {
			fields[num], _ = protowire.ConsumeVarint(raw[n:])
		}
		raw = raw[n+size:]
	}
	return fields
}

// bytesField returns all values of one length-delimited field, joined.
func bytesField(raw []byte, number protowire.Number) (joined []byte) {
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return joined
		}
		size := protowire.ConsumeFieldValue(num, typ, raw[n:])
		if size < 0 {
			return joined
		}
		if num == number && typ == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(raw[n:])
			joined = append(joined, value...)
		}
		raw = raw[n+size:]
	}
	return joined
}

// packed decodes a packed list of varints.
func packed(raw []byte) (list []uint64) {
	for len(raw) > 0 {
		v, n := protowire.ConsumeVarint(raw)
		if n < 0 {
			return list
		}
		list = append(list, v)
		raw = raw[n:]
	}
	return list
}

func newFile(plugin *protogen.Plugin, name string) *protogen.GeneratedFile {
	for _, file := range plugin.Files {
		if file.Generate {
			g := plugin.NewGeneratedFile(string(file.GoImportPath)+"/"+name, file.GoImportPath)
			g.P("// Code generated by protoc-gen-qpc from protos/qpc/v1. DO NOT EDIT.")
			g.P()
			g.P("package ", file.GoPackageName)
			g.P()
			return g
		}
	}
	return nil
}

// comment writes the leading comment of a descriptor as a Go comment that
// begins with name.
func comment(g *protogen.GeneratedFile, indent, name string, c protogen.Comments, otherwise string) {
	text := strings.TrimSpace(string(c))
	if text == "" {
		text = otherwise
	}
	lines := strings.Split(text, "\n")
	g.P(indent, "// ", name, ": ", strings.TrimSpace(lines[0]))
	for _, line := range lines[1:] {
		g.P(indent, "//", strings.TrimRight(" "+strings.TrimSpace(line), " "))
	}
}

func writeMethods(plugin *protogen.Plugin, table []method) {
	g := newFile(plugin, "methods_gen.go")
	message := g.QualifiedGoIdent(protogen.GoIdent{GoName: "Message", GoImportPath: "google.golang.org/protobuf/proto"})
	second := g.QualifiedGoIdent(protogen.GoIdent{GoName: "Second", GoImportPath: "time"})
	g.P("// Method ids, as they stand in the request header.")
	g.P("const (")
	for _, m := range table {
		g.P("Method", m.GoName, " MethodID = ", m.id)
	}
	g.P(")")
	g.P()
	g.P("// methodTable is every method of the protocol, by id.")
	g.P("var methodTable = [...]MethodInfo{")
	for _, m := range table {
		g.P("{ID: Method", m.GoName, ", Name: ", fmt.Sprintf("%q", m.GoName), ", Service: ", fmt.Sprintf("%q", m.Parent.GoName),
			", Access: Access_", accessConst(m.access), ", Idempotent: ", m.idempotent,
			", Deadline: ", m.deadlineSecs, " * ", second, ", MaxRequest: ", m.maxRequest, ", Errors: ", errorList(plugin, m),
			", NewRequest: func() ", message, " { return new(", m.Input.GoIdent, ") }",
			", NewResponse: func() ", message, " { return new(", m.Output.GoIdent, ") }},")
	}
	g.P("}")
}

// errorList writes the codes of a method as a Go literal.
func errorList(plugin *protogen.Plugin, m method) string {
	if len(m.errors) == 0 {
		return "nil"
	}
	values := findEnum(plugin, "Code").Values
	var names []string
	for _, number := range m.errors {
		for _, value := range values {
			if uint64(value.Desc.Number()) == number {
				names = append(names, value.GoIdent.GoName)
			}
		}
	}
	return "[]Code{" + strings.Join(names, ", ") + "}"
}

func accessConst(access uint64) string {
	return "ACCESS_" + strings.ToUpper(accessNames[access])
}

// camel turns NAME_TAKEN into NameTaken.
func camel(upper string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(upper, "_") {
		if word == "OK" {
			b.WriteString(word)
			continue
		}
		b.WriteString(word[:1] + strings.ToLower(word[1:]))
	}
	return b.String()
}

func writeCodes(plugin *protogen.Plugin) {
	g := newFile(plugin, "codes_gen.go")
	for _, name := range []string{"Status", "Code", "Event"} {
		enum := findEnum(plugin, name)
		prefix := strings.ToUpper(name) + "_"
		g.P("// Short names for the values of ", name, ".")
		g.P("const (")
		for _, value := range enum.Values {
			short := strings.TrimPrefix(string(value.Desc.Name()), prefix)
			g.P(name, camel(short), " = ", value.GoIdent)
		}
		g.P(")")
		g.P()
	}
	g.P("// codeTable gives each error code its word on the wire and its status.")
	g.P("var codeTable = [...]codeInfo{")
	for _, value := range findEnum(plugin, "Code").Values {
		status, _ := protowire.ConsumeVarint(extension(value.Desc.Options().(*descriptorpb.EnumValueOptions), statusExtension))
		word := strings.TrimPrefix(string(value.Desc.Name()), "CODE_")
		g.P(value.GoIdent, ": {", fmt.Sprintf("%q", word), ", Status(", status, ")},")
	}
	g.P("}")
}

func findEnum(plugin *protogen.Plugin, name string) *protogen.Enum {
	for _, file := range plugin.Files {
		for _, enum := range file.Enums {
			if enum.Desc.Name() == protoreflect.Name(name) {
				return enum
			}
		}
	}
	return nil
}

func writeServices(plugin *protogen.Plugin, table []method) {
	rows := map[string]method{}
	for _, m := range table {
		rows[string(m.Desc.FullName())] = m
	}
	g := newFile(plugin, "services_gen.go")
	ctx := g.QualifiedGoIdent(protogen.GoIdent{GoName: "Context", GoImportPath: "context"})
	message := g.QualifiedGoIdent(protogen.GoIdent{GoName: "Message", GoImportPath: "google.golang.org/protobuf/proto"})
	for _, file := range plugin.Files {
		for _, service := range file.Services {
			base := strings.TrimSuffix(service.GoName, "Service")
			comment(g, "", base+"Server answers the methods of "+service.GoName, service.Comments.Leading, "see the protos.")
			g.P("type ", base, "Server interface {")
			for _, m := range service.Methods {
				row := rows[string(m.Desc.FullName())]
				comment(g, "\t", m.GoName, m.Comments.Leading, fmt.Sprintf("method %d, %s.", row.id, accessNames[row.access]))
				g.P("\t", m.GoName, "(", ctx, ", *", m.Input.GoIdent, ") (*", m.Output.GoIdent, ", error)")
			}
			g.P("}")
			g.P()
			g.P("// Register", base, "Server makes r answer every method of ", service.GoName, " with s.")
			g.P("func Register", base, "Server(r Registrar, s ", base, "Server) {")
			for _, m := range service.Methods {
				g.P("\tr.Register(Method", m.GoName, ", func(ctx ", ctx, ", request ", message, ") (", message, ", error) {")
				g.P("\t\treturn reply(s.", m.GoName, "(ctx, request.(*", m.Input.GoIdent, ")))")
				g.P("\t})")
			}
			g.P("}")
			g.P()
			g.P("// ", base, "Client calls the methods of ", service.GoName, " through a Caller.")
			g.P("type ", base, "Client struct{ caller Caller }")
			g.P()
			g.P("// New", base, "Client returns a stub that calls through c.")
			g.P("func New", base, "Client(c Caller) ", base, "Client { return ", base, "Client{caller: c} }")
			g.P()
			for _, m := range service.Methods {
				row := rows[string(m.Desc.FullName())]
				comment(g, "", m.GoName, m.Comments.Leading, fmt.Sprintf("method %d, %s.", row.id, accessNames[row.access]))
				g.P("func (c ", base, "Client) ", m.GoName, "(ctx ", ctx, ", request *", m.Input.GoIdent, ") (*", m.Output.GoIdent, ", error) {")
				g.P("\tresponse := new(", m.Output.GoIdent, ")")
				g.P("\tif err := c.caller.Call(ctx, Method", m.GoName, ", request, response); err != nil {")
				g.P("\t\treturn nil, err")
				g.P("\t}")
				g.P("\treturn response, nil")
				g.P("}")
				g.P()
			}
		}
	}
}

func writeDocs(plugin *protogen.Plugin, table []method) error {
	var b strings.Builder
	b.WriteString("# Methods\n\n")
	b.WriteString("<!-- Generated by tools/protoc-gen-qpc from protos/qpc/v1. Do not edit. -->\n\n")
	b.WriteString("Every method of the protocol. *Access*: **public** (anyone who reaches the port), **session** (a logged-in connection), **admin** (a session whose identity is in the `admin` list), **peer** (another server), **local** (the control socket). *Retry*: idempotent methods may be retried and may ride in 0-RTT. \n\nEvery method may be answered with `MALFORMED`, `INVALID_FIELD`, `PAYLOAD_TOO_LARGE`, `BUSY`, `DRAINING`, `DEADLINE_EXCEEDED`, `STORAGE_FAILED`, `DISK_FULL` or `INTERNAL`; one of access session or admin also with `UNAUTHENTICATED`, one of access admin with `ADMIN_REQUIRED`. What else a method may be answered with stands with it below.\n\n")
	b.WriteString("| id | method | access | retry | deadline | largest request | what it does |\n|---:|---|---|---|---:|---:|---|\n")
	for _, m := range table {
		retry := ""
		if m.idempotent {
			retry = "yes"
		}
		what := strings.Join(strings.Fields(string(m.Comments.Leading)), " ")
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %d s | %s | %s |\n", m.id, m.GoName, accessNames[m.access], retry, m.deadlineSecs, bytesText(m.maxRequest), what)
	}
	b.WriteString("\n## Messages\n\n")
	for _, m := range table {
		fmt.Fprintf(&b, "### %d %s\n\n", m.id, m.GoName)
		if m.limits != "" {
			fmt.Fprintf(&b, "Limits: %s\n\n", m.limits)
		}
		if len(m.errors) > 0 {
			fmt.Fprintf(&b, "Errors: %s\n\n", errorWords(plugin, m))
		}
		messageTable(&b, "Request", m.Input)
		messageTable(&b, "Response", m.Output)
	}
	b.WriteString("## Statuses\n\n| byte | status | meaning |\n|---:|---|---|\n")
	for _, value := range findEnum(plugin, "Status").Values {
		fmt.Fprintf(&b, "| %d | %s | %s |\n", value.Desc.Number(), strings.TrimPrefix(string(value.Desc.Name()), "STATUS_"), oneLine(value.Comments.Leading))
	}
	b.WriteString("\n## Error codes\n\n| code | status | meaning |\n|---|---|---|\n")
	statuses := findEnum(plugin, "Status")
	for _, value := range findEnum(plugin, "Code").Values[1:] {
		number, _ := protowire.ConsumeVarint(extension(value.Desc.Options().(*descriptorpb.EnumValueOptions), statusExtension))
		status := statuses.Desc.Values().ByNumber(protoreflect.EnumNumber(number))
		fmt.Fprintf(&b, "| %s | %s | %s |\n", strings.TrimPrefix(string(value.Desc.Name()), "CODE_"), strings.TrimPrefix(string(status.Name()), "STATUS_"), oneLine(value.Comments.Leading))
	}
	var module string
	for _, file := range plugin.Files {
		if file.Generate {
			module = strings.TrimSuffix(string(file.GoImportPath), "/pkg/qpcpb")
		}
	}
	docs := plugin.NewGeneratedFile(module+"/docs/methods.md", "")
	_, err := docs.Write([]byte(b.String()))
	return err
}

// errorWords lists the codes of a method as they stand on the wire.
func errorWords(plugin *protogen.Plugin, m method) string {
	values := findEnum(plugin, "Code").Desc.Values()
	var words []string
	for _, number := range m.errors {
		if value := values.ByNumber(protoreflect.EnumNumber(number)); value != nil {
			words = append(words, "`"+strings.TrimPrefix(string(value.Name()), "CODE_")+"`")
		}
	}
	return strings.Join(words, ", ")
}

func messageTable(b *strings.Builder, title string, message *protogen.Message) {
	if len(message.Fields) == 0 {
		fmt.Fprintf(b, "%s: empty.\n\n", title)
		return
	}
	fmt.Fprintf(b, "%s:\n\n| field | type | name | |\n|---:|---|---|---|\n", title)
	for _, field := range message.Fields {
		kind := field.Desc.Kind().String()
		if field.Message != nil {
			kind = string(field.Message.Desc.Name())
		}
		if field.Desc.IsList() {
			kind = "repeated " + kind
		}
		fmt.Fprintf(b, "| %d | %s | %s | %s |\n", field.Desc.Number(), kind, field.Desc.Name(), oneLine(field.Comments.Trailing))
	}
	b.WriteString("\n")
}

func oneLine(c protogen.Comments) string { return strings.Join(strings.Fields(string(c)), " ") }

func bytesText(n uint64) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
