"""An application that proves who it is and asks whether it may read a vault's secrets.

    report.py NAMESPACE VAULT

It uses azure-identity as it is, without an option. It runs in a pod with the label
claviger.dev/use-identity: "true", and on a workstation after

    eval "$(kubectl claviger login --serviceaccount report --namespace shop --authority https://…)"

Needs: pip install azure-identity requests
"""

import os
import re
import sys

import requests
from azure.identity import DefaultAzureCredential

namespace, vault = sys.argv[1:]
authority = os.environ["AZURE_AUTHORITY_HOST"].rstrip("/")
door = f"{authority}/claviger/v1/access/{namespace}/secretvaults/{vault}/secrets/get"

# A door without a token answers which resource a token must be for, as Key Vault's do.
challenge = requests.get(door, timeout=10).headers["WWW-Authenticate"]
resource = re.search(r'resource="([^"]+)"', challenge).group(1)
print(f"the door asks for a token for {resource}")

credential = DefaultAzureCredential(exclude_managed_identity_credential=True)
token = credential.get_token(f"{resource}/.default")
headers = {"Authorization": f"Bearer {token.token}"}

me = requests.get(f"{authority}/claviger/v1/whoami", headers=headers, timeout=10).json()
print(f"it knows me as {me['user']}")

answer = requests.get(door, headers=headers, timeout=10)
if answer.ok:
    print(f"I may read the secrets of {vault}")
else:
    sys.exit(f"{answer.status_code}: {answer.json()['error']['message']}")
