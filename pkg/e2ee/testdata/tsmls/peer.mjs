// A member of an MLS group that runs on ts-mls. It reads one JSON command a line
// and answers each with one line: {"ok": …} or {"error": "…"}. Bytes are hex.
import { createInterface } from "node:readline"
import {
  acceptAll, createApplicationMessage, createCommit, createGroup, createProposal,
  decodeMlsMessage, defaultCapabilities, emptyPskIndex, encodeMlsMessage,
  generateKeyPackageWithKey, getCiphersuiteFromName, getCiphersuiteImpl, joinGroup, processMessage,
} from "ts-mls"

const suite = await getCiphersuiteImpl(
  getCiphersuiteFromName("MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519"))
const hex = (bytes) => Buffer.from(bytes).toString("hex")
const unhex = (text) => new Uint8Array(Buffer.from(text, "hex"))
const version = "mls10"

let own, state

function decode(text) {
  const bytes = unhex(text)
  const decoded = decodeMlsMessage(bytes, 0)
  if (!decoded) throw new Error("not an MLSMessage")
  if (decoded[1] !== bytes.length) throw new Error("bytes are left over")
  return decoded[0]
}

const encodeCommit = (made) => ({
  commit: hex(encodeMlsMessage(made.commit)),
  welcome: made.welcome
    ? hex(encodeMlsMessage({ version, wireformat: "mls_welcome", welcome: made.welcome })) : "",
})

async function commit(proposals, wireAsPublicMessage) {
  const made = await createCommit({ state, cipherSuite: suite },
    { extraProposals: proposals, ratchetTreeExtension: true, wireAsPublicMessage })
  state = made.newState
  return encodeCommit(made)
}

const commands = {
  // Key packages travel as MLSMessage here; ours are bare, four bytes shorter.
  async keyPackage() {
    const keys = await suite.signature.keygen()
    const credential = { credentialType: "basic", identity: keys.publicKey }
    own = await generateKeyPackageWithKey(credential, defaultCapabilities(),
      { notBefore: 0n, notAfter: 2n ** 64n - 1n }, [], keys, suite)
    return {
      identity: hex(keys.publicKey),
      keyPackage: hex(encodeMlsMessage({ version, wireformat: "mls_key_package", keyPackage: own.publicPackage })),
    }
  },
  async create({ groupID }) {
    state = await createGroup(unhex(groupID), own.publicPackage, own.privatePackage, [], suite)
    return {}
  },
  async add({ keyPackage, public: asPublic }) {
    const add = { proposalType: "add", add: { keyPackage: decode(keyPackage).keyPackage } }
    return commit([add], asPublic)
  },
  async refresh({ public: asPublic }) {
    return commit([], asPublic)
  },
  async remove({ leaf }) {
    return commit([{ proposalType: "remove", remove: { removed: leaf } }], false)
  },
  async proposeRemove({ leaf, public: asPublic }) {
    const made = await createProposal(state, asPublic, { proposalType: "remove", remove: { removed: leaf } }, suite)
    state = made.newState
    return { message: hex(encodeMlsMessage(made.message)) }
  },
  async join({ welcome }) {
    state = await joinGroup(decode(welcome).welcome, own.publicPackage, own.privatePackage, emptyPskIndex, suite)
    return { groupID: hex(state.groupContext.groupId), epoch: Number(state.groupContext.epoch) }
  },
  async encrypt({ text }) {
    const made = await createApplicationMessage(state, unhex(text), suite)
    state = made.newState
    return { message: hex(encodeMlsMessage({ version, wireformat: "mls_private_message", privateMessage: made.privateMessage })) }
  },
  async process({ message }) {
    const result = await processMessage(decode(message), state, emptyPskIndex, acceptAll, suite)
    state = result.newState
    return {
      text: result.kind === "applicationMessage" ? hex(result.message) : "",
      epoch: Number(state.groupContext.epoch),
    }
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
