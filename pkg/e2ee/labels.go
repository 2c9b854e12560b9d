package e2ee

// Every label and info string of this package. Append only: a string that has
// ever been released keeps its meaning for ever, and no two are alike. The label
// of the identity proof is in package proof.
const (
	labelDevice         = "qpc device v1"          // PROTOCOL 9, device credential
	labelHybridEnvelope = "qpc hybrid envelope v1" // PROTOCOL 9, HKDF info
	labelSafetyNumber   = "qpc safety number v1"   // PROTOCOL 9, HMAC key
	labelFile           = "qpc file v1"            // file.go, HKDF info

	labelRecoverySalt   = "qpc recovery salt v1"   // before the name, in Argon2id's salt
	labelRecoveryToken  = "qpc recovery token v1"  // HKDF info
	labelRecoveryBundle = "qpc recovery bundle v1" // HKDF info, and in the associated data
	labelReport         = "qpc report v1"          // before the key in a report's envelopes

	labelGroupMetadata = "qpc group metadata v1"      // MLS exporter label (RFC 9420, section 8.5)
	labelRepeatable    = "qpc repeatable envelope v1" // HKDF info

	// RFC 9420. mls-go puts "MLS 1.0 " before each.
	labelMLSKeyPackage = "KeyPackageTBS" // section 10
	labelMLSWelcome    = "Welcome"       // section 12.4.3.1, HPKE
)

// labels lists the constants above for the test of uniqueness.
func labels() []string {
	return []string{labelDevice, labelHybridEnvelope, labelSafetyNumber, labelFile, labelMLSKeyPackage, labelMLSWelcome,
		labelRecoverySalt, labelRecoveryToken, labelRecoveryBundle, labelReport}
}
