// An OPAQUE client that runs on opaque-ke. It makes and reads the messages; who
// runs it carries them to the server. It reads one JSON command a line and
// answers each with one line: {"ok": …} or {"error": "…"}. Bytes are unpadded
// base64url, as the package has them.
import { createInterface } from "node:readline"
import * as opaque from "@serenity-kit/opaque"

await opaque.ready

// PROTOCOL 7.2: Argon2id with 19 MiB, two passes, one lane.
const keyStretching = { "argon2id-custom": { iterations: 2, memory: 19456, parallelism: 1 } }

let registration, login

const commands = {
  startRegistration({ password }) {
    const made = opaque.client.startRegistration({ password })
    registration = { password, state: made.clientRegistrationState }
    return { request: made.registrationRequest }
  },
  finishRegistration({ response }) {
    const made = opaque.client.finishRegistration({
      password: registration.password, keyStretching,
      clientRegistrationState: registration.state, registrationResponse: response,
    })
    return { upload: made.registrationRecord, exportKey: made.exportKey, serverKey: made.serverStaticPublicKey }
  },
  startLogin({ password }) {
    const made = opaque.client.startLogin({ password })
    login = { password, state: made.clientLoginState }
    return { request: made.startLoginRequest }
  },
  finishLogin({ response }) {
    const made = opaque.client.finishLogin({
      password: login.password, keyStretching, clientLoginState: login.state, loginResponse: response,
    })
    if (!made) throw new Error("refused")
    return {
      finalization: made.finishLoginRequest, sessionKey: made.sessionKey,
      exportKey: made.exportKey, serverKey: made.serverStaticPublicKey,
    }
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  try {
    console.log(JSON.stringify({ ok: commands[command.op](command) }))
  } catch (error) {
    console.log(JSON.stringify({ error: String(error?.message ?? error) }))
  }
}
