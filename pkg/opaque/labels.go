package opaque

// Every label and info string of this package, and nothing else. This list only
// grows: a label that has ever been used keeps its text and its meaning, since
// stored records and running peers depend on it. TestLabels keeps them unique.
const (
	// RFC 9807, sections 5.2.2 and 6.3.2.2.
	labelOPRFKey    = "OprfKey"
	labelOPRFDerive = "OPAQUE-DeriveKeyPair"

	// RFC 9807, section 6.4.1.1.
	labelDHDerive = "OPAQUE-DeriveDiffieHellmanKeyPair"

	// RFC 9807, section 4.1.2.
	labelMaskingKey = "MaskingKey"
	labelAuthKey    = "AuthKey"
	labelExportKey  = "ExportKey"
	labelPrivateKey = "PrivateKey"

	// RFC 9807, section 6.3.2.2.
	labelResponsePad = "CredentialResponsePad"

	// RFC 9807, section 6.4.2.
	labelPreamble        = "OPAQUEv1-"
	labelPrefix          = "OPAQUE-"
	labelHandshakeSecret = "HandshakeSecret"
	labelSessionKey      = "SessionKey"
	labelServerMAC       = "ServerMAC"
	labelClientMAC       = "ClientMAC"

	// Ours: what a server makes up for names it does not know.
	labelFakeMaskingKey = "qpc opaque fake masking key v1"
	labelFakeClientKey  = "qpc opaque fake client key v1"
)
