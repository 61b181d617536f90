// Asks for a token as an application does, with the credentials of @azure/identity as they are.
//
//   identity.mjs CREDENTIAL SCOPE...
//
// Prints one JSON line: {"tokens": [...]} or {"error": type, "message": what the SDK shows}.
// Everything else comes from the environment, as in a pod. The packages are found by
// CLAVIGER_SDK, the folder that setup.sh filled.

import { createRequire } from "node:module";

const require = createRequire(`${process.env.CLAVIGER_SDK}/`);
const identity = require("@azure/identity");

const [name, ...scopes] = process.argv.slice(2);
try {
  const credential =
    name === "ClientSecretCredential"
      ? new identity.ClientSecretCredential("adfs", "shop/web", "no-such-secret")
      : new identity[name]();
  const tokens = [];
  for (const scope of scopes) {
    tokens.push((await credential.getToken(scope)).token);
  }
  console.log(JSON.stringify({ tokens }));
} catch (error) {
  console.log(JSON.stringify({ error: error.name, message: error.message }));
}
