// A QUIC client that runs on quiche. It reads one JSON command a line and
// answers each with one line: {"ok": …} or {"error": "…"}. Bytes are hex.
import { createInterface } from "node:readline"
import { webcrypto } from "node:crypto"
import { QUICClient } from "@matrixai/quic"
import Logger, { LogLevel } from "@matrixai/logger"

const hex = (bytes) => Buffer.from(bytes).toString("hex")
const unhex = (text) => new Uint8Array(Buffer.from(text, "hex"))

let client

async function readAll(readable) {
  const parts = []
  for await (const part of readable) parts.push(Buffer.from(part)) // the buffer is reused
  return Buffer.concat(parts)
}

const commands = {
  // Connects, and returns the certificate that the server showed.
  async connect({ host, port, alpn }) {
    let certificate
    client = await QUICClient.createQUICClient({
      host, port, localHost: "127.0.0.1",
      crypto: { ops: { randomBytes: async (data) => { webcrypto.getRandomValues(new Uint8Array(data)) } } },
      config: {
        applicationProtos: [alpn],
        maxIdleTimeout: 10_000,
        verifyCallback: async (chain) => { certificate = hex(chain[0]) }, // who runs it compares
      },
      logger: new Logger("quic", LogLevel.NOTSET, []), // without handlers it is silent
    }, { timer: 10_000 })
    return { certificate }
  },
  // Sends bytes on a stream of their own, ends its half, and returns all that
  // comes back.
  async exchange({ bytes }) {
    const stream = client.connection.newStream("bidi")
    const writer = stream.writable.getWriter()
    await writer.write(unhex(bytes))
    await writer.close()
    return { id: stream.streamId, bytes: hex(await readAll(stream.readable)) }
  },
  async close() {
    await client.destroy({ force: true })
    return {}
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  try {
    console.log(JSON.stringify({ ok: await commands[command.op](command) }))
  } catch (error) {
    console.log(JSON.stringify({ error: String(error?.message ?? error) }))
  }
}
process.exit(0) // a connection that is still open would keep node alive
