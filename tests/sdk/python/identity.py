"""Asks for a token as an application does, with the credentials of azure-identity as they are.

    identity.py CREDENTIAL SCOPE [SCOPE...]

Prints one JSON line: {"tokens": [...]} or {"error": type, "message": what the SDK shows}.
Everything else comes from the environment, as in a pod.
"""

import asyncio
import json
import sys

import azure.identity
import azure.identity.aio


def main(name, scopes):
    if name == "ClientSecretCredential":
        credential = azure.identity.ClientSecretCredential(
            "adfs", "shop/web", "no-such-secret", disable_instance_discovery=True
        )
    else:
        credential = getattr(azure.identity, name)()
    return [credential.get_token(scope).token for scope in scopes]


async def main_async(name, scopes):
    async with getattr(azure.identity.aio, name)() as credential:
        return [(await credential.get_token(scope)).token for scope in scopes]


if __name__ == "__main__":
    name, *scopes = sys.argv[1:]
    try:
        if name.startswith("aio."):
            tokens = asyncio.run(main_async(name.removeprefix("aio."), scopes))
        else:
            tokens = main(name, scopes)
        print(json.dumps({"tokens": tokens}))
    except Exception as error:  # whatever an application would see
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
